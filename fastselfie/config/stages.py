"""Pretraining and finetuning."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fastselfie.config.base import FREE, Fraction, PositiveInt, Section


class StageConfig(Section):
    """What pretraining and finetuning share: SGD with Nesterov momentum under a cosine."""

    steps: PositiveInt = Field(120_000, description="updates of the weights")
    batch_size: PositiveInt = Field(
        1024, description="images an update, over all processes, whose number divides it"
    )
    micro_batch_size: PositiveInt | None = Field(
        None,
        description="images a forward pass of one process, a divisor of batch_size; null: as many "
        "as fit in memory by the estimate of --dry-run. Batch norm sees this many",
    )
    lr: Annotated[float, Field(gt=0.0)] = Field(
        0.1, description="maximum learning rate; the paper tunes it in [0.01, 0.4]"
    )
    warmup_steps: Annotated[int, Field(ge=0)] = Field(100, description="linear warm-up")
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.9, description="Nesterov")
    weight_decay: Annotated[float, Field(ge=0.0)] = Field(
        1e-4, description="L2 on convolution and linear weights; not on norms, biases, positions"
    )
    clip_grad_norm: Annotated[float, Field(gt=0.0)] | None = Field(
        None, description="clip the gradient's norm; null: off"
    )
    on_nonfinite: Literal["raise", "skip"] = Field(
        "raise",
        description="a loss or gradient that is NaN or infinite: raise stops with the weights as "
        "they were before, and writes what `fastselfie replay` repeats; skip leaves the step out",
    )
    max_skipped_in_a_row: PositiveInt = Field(
        10,
        description="on_nonfinite: skip stops after so many steps one after the other",
        json_schema_extra=FREE,
    )
    log_every: PositiveInt = Field(50, description="steps", json_schema_extra=FREE)
    eval_every: PositiveInt = Field(5_000, description="steps", json_schema_extra=FREE)
    save_every: PositiveInt = Field(1_000, description="steps", json_schema_extra=FREE)

    @model_validator(mode="after")
    def _check_micro(self) -> StageConfig:
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"micro_batch_size is {self.micro_batch_size}: it must divide batch_size = "
                f"{self.batch_size}"
            )
        return self


class PretrainConfig(StageConfig):
    """Selfie pretraining: the labels are not used."""

    pad_mode: Literal["zero", "reflect", "none"] | None = Field(
        None, description="data.pad_mode of pretraining alone; null: the same in both stages"
    )
    eval_images: PositiveInt = Field(
        2_048, description="held-out images for the pretext accuracy", json_schema_extra=FREE
    )
    picture_steps: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (0, 2_000, 10_000, 120_000),
        description="steps at which the mask-prediction picture is taken; the last step always",
        json_schema_extra=FREE,
    )
    knn_every: PositiveInt | None = Field(
        5_000,
        description="steps between two measures, by k-NN, of P's features of whole images, from "
        "step 0 to the last. They need labels, of which nothing is learned; null: off",
        json_schema_extra=FREE,
    )
    knn_images: PositiveInt = Field(
        10_000,
        description="training images, drawn by the seed, that vote; `fastselfie evaluate` takes "
        "all of them",
        json_schema_extra=FREE,
    )
    knn_queries: PositiveInt = Field(
        5_000, description="held-out images, drawn by the seed, voted on", json_schema_extra=FREE
    )
    linear_probe: bool = Field(
        True,
        description="also fit a linear probe to those features: up to 100 iterations of L-BFGS",
        json_schema_extra=FREE,
    )


class FinetuneConfig(StageConfig):
    """Finetuning a ResNet from P on few labels, and the supervised control from scratch."""

    labels: Fraction = Field(0.1, description="share of the labels, class-balanced")
    labels_per_class: PositiveInt | None = Field(
        None, description="labels of each class instead of a share"
    )
    control: bool = Field(
        True, description="also train the same network from scratch", json_schema_extra=FREE
    )
    scratch_lr: Annotated[float, Field(gt=0.0)] | None = Field(
        None, description="the control's maximum learning rate; null: lr"
    )
