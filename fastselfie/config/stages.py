"""The sections `pretrain` and `finetune`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fastselfie.config.base import Fraction, Free, PositiveFloat, PositiveInt, Section


class StageConfig(Section):
    """Keys of both stages: SGD with Nesterov momentum and a cosine schedule."""

    steps: PositiveInt = 120_000
    """number of weight updates"""
    batch_size: PositiveInt = 1024
    """images per update, over all ranks; a multiple of their number"""
    micro_batch_size: PositiveInt | None = None
    """images per forward pass of a rank, a divisor of batch_size; null: as many as fit in memory by
    the estimate of --dry-run. Batch statistics are over this many"""
    lr: PositiveFloat = 0.1
    """maximum learning rate; the paper tunes it in [0.01, 0.4]"""
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    """steps of linear warm-up"""
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    """Nesterov momentum"""
    weight_decay: Annotated[float, Field(ge=0.0)] = 1e-4
    """L2, on convolution and linear weights only"""
    clip_grad_norm: PositiveFloat | None = None
    """maximum norm of the gradient; null: no clipping"""
    on_nonfinite: Literal["raise", "skip"] = "raise"
    """if a loss or gradient is NaN or infinite: raise stops before the update and writes a file for
    `fastselfie replay`; skip skips the step"""
    max_skipped_in_a_row: Free[PositiveInt] = 10
    """on_nonfinite: skip stops after this many consecutive steps"""
    log_every: Free[PositiveInt] = 50
    """steps between log lines"""
    eval_every: Free[PositiveInt] = 5_000
    """steps between evaluations"""
    save_every: Free[PositiveInt] = 1_000
    """steps between checkpoints"""

    def image_size_at(self, step: int) -> int | None:
        """Return the image side in `step` (from 0), or None for data.image_size.

        `FinetuneConfig` has progressive sizes.
        """
        return None

    @model_validator(mode="after")
    def _check_micro(self) -> StageConfig:
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"micro_batch_size is {self.micro_batch_size}: must divide batch_size = "
                f"{self.batch_size}"
            )
        return self


class PretrainConfig(StageConfig):
    """Selfie pretraining, without labels."""

    crop: Literal["resized", "pad"] | None = None
    """data.crop for pretraining only; null: data.crop. On 32x32 images each choice has a shortcut
    of its own: see docs/reproduction.md"""
    area: tuple[float, float] | None = None
    """data.area for pretraining only; null: data.area"""
    pad_mode: Literal["zero", "reflect", "none"] | None = None
    """data.pad_mode for pretraining only; null: data.pad_mode"""
    patch_gap: Annotated[int, Field(ge=0)] = 0
    """pixels between the patches that P sees: of each cell of the grid it sees a window of
    model.patch_size - patch_gap pixels a side, so borders do not continue in the next patch
    (Doersch et al. 2015)"""
    patch_jitter: bool = True
    """patch_gap: the window is at a random place of its cell; false: in the centre"""
    patch_grey: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """probability that a patch loses its colour, drawn for each patch: colours, and their
    aberration by the lens, then do not tell its place (Doersch et al. 2015)"""
    patch_contrast: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """contrast of each patch about data.mean: a random factor in [1 - c, 1 + c] (Noroozi and Favaro
    2016 normalise each patch, so that its mean and deviation do not tell its neighbours)"""
    patch_brightness: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """random number in [-b, b] added to the levels 0..1 of each patch, which are not clipped"""
    eval_images: Free[PositiveInt] = 2_048
    """held-out images for the pretext accuracy"""
    picture_steps: Free[tuple[Annotated[int, Field(ge=0)], ...]] = (0, 2_000, 10_000, 120_000)
    """steps at which to save the mask-prediction picture, besides the last"""
    knn_every: Free[PositiveInt | None] = 5_000
    """steps between k-NN evaluations of P's features of whole images, from step 0 to the last;
    null: off. They use labels, but train nothing"""
    knn_images: Free[PositiveInt] = 10_000
    """random training images that vote; `fastselfie evaluate` uses all of them"""
    knn_queries: Free[PositiveInt] = 5_000
    """random held-out images to classify"""
    linear_probe: Free[bool] = True
    """also fit a linear probe to these features, by L-BFGS, up to 100 iterations"""


class FinetuneConfig(StageConfig):
    """Finetuning of the pretrained network on few labels, and the supervised control."""

    form: Literal["resnet", "attention_pooling"] = "resnet"
    """resnet: a ResNet on whole images, its first three stages from P; attention_pooling: P on all
    patches, A with positions, and a classifier on u, all but the classifier from pretraining: the
    paper's ResNet-36 + attention pooling"""
    progressive: tuple[PositiveInt, ...] = ()
    """increasing sides, in pixels, of the smaller images to begin with, each for an equal part of
    the first progressive_until of the steps; then data.image_size. With form: attention_pooling,
    patches shrink too, so their number is constant. Images are shrunk on the device: this saves
    computation, not decoding"""
    progressive_until: Fraction = 0.5
    """fraction of the steps; see progressive"""
    labels: Fraction = 0.1
    """fraction of the labels, the same for each class"""
    labels_per_class: PositiveInt | None = None
    """number of labels per class, instead of a fraction"""
    control: Free[bool] = True
    """also train the same network from scratch, as a control"""
    scratch_lr: PositiveFloat | None = None
    """maximum learning rate of the control; null: lr"""

    def image_size_at(self, step: int) -> int | None:
        part = int(step * len(self.progressive) / (self.progressive_until * self.steps))
        return self.progressive[part] if part < len(self.progressive) else None
