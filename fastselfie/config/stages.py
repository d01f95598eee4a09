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
    progressive: tuple[PositiveInt, ...] = Field(
        (),
        description="sides, pixels, of the smaller images that training begins with, rising, each "
        "for an equal part of the first progressive_until of the steps; then data.image_size. "
        "Patches shrink alike, so their number stays. Images are shrunk on the device after "
        "loading: that saves computing, not decoding",
    )
    progressive_until: Fraction = Field(0.5, description="share of the steps, see progressive")
    log_every: PositiveInt = Field(50, description="steps", json_schema_extra=FREE)
    eval_every: PositiveInt = Field(5_000, description="steps", json_schema_extra=FREE)
    save_every: PositiveInt = Field(1_000, description="steps", json_schema_extra=FREE)

    def image_size_at(self, step: int) -> int | None:
        """The smaller side that images have in `step` (0 is the first); None: data.image_size."""
        part = int(step * len(self.progressive) / (self.progressive_until * self.steps))
        return self.progressive[part] if part < len(self.progressive) else None

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

    crop: Literal["resized", "pad"] | None = Field(
        None,
        description="data.crop of pretraining alone; null: the same in both stages. On 32x32 "
        "images each way has a shortcut of its own, see docs/reproduction.md",
    )
    area: tuple[float, float] | None = Field(
        None, description="data.area of pretraining alone; null: the same in both stages"
    )
    pad_mode: Literal["zero", "reflect", "none"] | None = Field(
        None, description="data.pad_mode of pretraining alone; null: the same in both stages"
    )
    ema: Annotated[float, Field(gt=0.0, lt=1.0)] | None = Field(
        None,
        description="decay of an exponential moving average of the weights, kept beside them, "
        "which is then what is measured, finetuned and exported; it looks back 1 / (1 - decay) "
        "steps. Batch statistics are averaged alike; a step that is left out counts for nothing. "
        "null: the weights themselves",
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
    """Finetuning from the pretrained network on few labels, and the control from scratch."""

    form: Literal["resnet", "attention_pooling"] = Field(
        "resnet",
        description="resnet: the four stages of a ResNet on whole images, the first three from P; "
        "attention_pooling: P on all patches, A with the positions over them, a classifier on u, "
        "all of them from pretraining: the paper's ResNet-36 + attention pooling",
    )
    labels: Fraction = Field(0.1, description="share of the labels, class-balanced")
    labels_per_class: PositiveInt | None = Field(
        None, description="labels of each class instead of a share"
    )
    recalibrate: Annotated[int, Field(ge=0)] = Field(
        0,
        description="labelled images, rounded up to whole passes, over which batch norm's running "
        "statistics are taken anew before the first step, as pretraining's are of patches. "
        "Training reads none of them: it changes what is measured until their averages, of the "
        "last few tens of steps, have caught up. The control has none to take anew",
    )
    control: bool = Field(
        True, description="also train the same network from scratch", json_schema_extra=FREE
    )
    scratch_lr: Annotated[float, Field(gt=0.0)] | None = Field(
        None, description="the control's maximum learning rate; null: lr"
    )
