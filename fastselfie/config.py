"""The configuration: typed, frozen, every key documented once, here."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

# A value that a resumed run may change without becoming another experiment.
_Free = "changes nothing that is learned"
FREE: dict[str, Any] = {"resume": _Free}

PositiveInt = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(gt=0.0, le=1.0)]


class _Section(BaseModel):
    # Strict: "3" is not 3. Values are validated as JSON, where a list may become a tuple.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class DataConfig(_Section):
    """Where the images are, and what is done to them before the network sees them."""

    train: str | None = Field(
        None,
        description="an image folder (one sub-folder a class, loose images as one class, or train/ "
        "and test/ or val/ inside), a .beton file of `fastselfie prepare`, a folder of CIFAR, "
        "ImageNet 32x32 or IDX files (MNIST), or .tar (WebDataset) or .parquet files",
        json_schema_extra=FREE,
    )
    test: str | None = Field(
        None,
        description="held-out images, same kinds; null: the test part of data.train, else a split",
        json_schema_extra=FREE,
    )
    held_out: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        0.1, description="share of each class held out when data.train has no test part"
    )
    limit: PositiveInt | None = Field(None, description="use only so many images of each split")
    image_size: PositiveInt = Field(224, description="side of the square image, pixels")
    crop: Literal["resized", "pad"] = Field(
        "resized",
        description="resized: random area and ratio, resized to image_size; pad: shift by data.pad",
    )
    area: tuple[float, float] = Field((0.08, 1.0), description="crop: resized, share of the area")
    ratio: tuple[float, float] = Field((3 / 4, 4 / 3), description="crop: resized, width / height")
    pad: Annotated[int, Field(ge=0)] = Field(4, description="crop: pad, pixels on each side")
    pad_mode: Literal["zero", "reflect", "none"] = Field(
        "zero",
        description="what the shift uncovers; zero is the paper's, but its black bars give the "
        "place of a patch away; none: no shift",
    )
    flip: bool = Field(True, description="flip half of the images horizontally")
    mean: tuple[float, float, float] = Field(
        (0.485, 0.456, 0.406), description="subtracted, per channel, in units of 0..1"
    )
    std: tuple[float, float, float] = Field(
        (0.229, 0.224, 0.225), description="divided by, per channel, in units of 0..1"
    )
    loader: Literal["auto", "native", "folder", "resident", "ffcv", "dali", "synthetic"] = Field(
        "auto",
        description="native: crops in the bitstream of a .beton file; resident: the whole set on "
        "the device (small images); folder: Pillow and worker processes; ffcv, dali: those "
        "libraries, installed as extras; synthetic: random pixels, no files",
        json_schema_extra=FREE,
    )
    workers: Annotated[int, Field(ge=0)] | None = Field(
        None, description="decoding threads or processes; null: one a core", json_schema_extra=FREE
    )
    on_error: Literal["raise", "skip"] = Field(
        "raise",
        description="an image that cannot be decoded: raise names it and stops; skip puts another "
        "of its batch in its place, and counts",
    )
    max_skipped_in_a_row: PositiveInt = Field(
        100,
        description="on_error: skip stops after so many images one after the other: a disk that is "
        "gone is not a bad image",
        json_schema_extra=FREE,
    )

    @model_validator(mode="after")
    def _check(self) -> DataConfig:
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise ValueError(f"data.area is {list(self.area)}: it must rise within (0, 1]")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"data.ratio is {list(self.ratio)}: it must rise from above 0")
        if self.loader == "resident" and self.crop != "pad":
            raise ValueError("data.loader is resident, which needs data.crop: pad")
        if self.pad >= self.image_size and self.crop == "pad":
            raise ValueError(f"data.pad is {self.pad}: it must be below data.image_size")
        return self


class ModelConfig(_Section):
    """The network. The defaults are the paper's: ResNet-50 at width 64, D = 16 x width = 1024."""

    stem: Literal["imagenet", "cifar"] = Field(
        "imagenet", description="imagenet: 7x7/2 conv and 3x3/2 max pool; cifar: 3x3/1 conv"
    )
    width: PositiveInt = Field(64, description="channels of the stem")
    blocks: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] = Field(
        (3, 4, 6, 3), description="bottlenecks in each stage; P is the first three"
    )
    patch_size: PositiveInt = Field(32, description="side of a patch, pixels")
    mask_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        0.25, description="M = floor(fraction x N) patches are masked"
    )
    positions: Literal["learned", "row_column"] = Field(
        "row_column", description="one vector a location, or a row and a column vector summed"
    )
    position_std: Annotated[float, Field(gt=0.0)] = Field(
        1.0,
        description="of the initial position vectors; u has 1 too. The places must be told apart "
        "from the start: with BERT's 0.02 the quickstart learns several times more slowly",
    )
    encoder_positions: bool = Field(
        True, description="add positions to the visible patches; false is an ablation"
    )
    layers: PositiveInt = Field(3, description="attention pooling: transformer blocks")
    heads: PositiveInt = Field(32, description="attention pooling: heads")
    feed_forward: PositiveInt = Field(640, description="attention pooling: hidden width of the MLP")
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.1, description="attention pooling: on the attention weights and before each residual"
    )
    sync_batch_norm: bool = Field(
        False,
        description="batch norm sees the images of all processes' passes, not of one's; needs "
        "GPUs where there is more than one process",
    )
    logit_scale: Literal["inverse_sqrt", "none"] = Field(
        "inverse_sqrt",
        description="scores are divided by sqrt(D): raw ones spread by about 10 at step 0, "
        "where the loss is then far above ln M",
    )

    @property
    def embedding_width(self) -> int:
        """D: the channels at the end of stage 3, a bottleneck's 4 x 4 x width."""
        return 16 * self.width

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        if self.embedding_width % self.heads:
            raise ValueError(
                f"model.heads is {self.heads}: it must divide 16 x model.width = "
                f"{self.embedding_width}"
            )
        return self


class StageConfig(_Section):
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

    eval_images: PositiveInt = Field(
        2_048, description="held-out images for the pretext accuracy", json_schema_extra=FREE
    )
    picture_steps: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (0, 2_000, 10_000, 120_000),
        description="steps at which the mask-prediction picture is taken; the last step always",
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


def _off(value: object) -> object:
    """YAML 1.1 reads a bare `off` as false."""
    return "off" if value is False else value


class RuntimeConfig(_Section):
    """How the machine is used. Nothing here changes what is computed, only how fast."""

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU if one is seen")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="of the matrix work; auto: bf16 on sm_80 and newer and on CPUs with AMX or "
        "AVX-512 instructions for it, fp16 with a scaler on older GPUs, else fp32",
    )
    channels_last: bool = Field(True, description="NHWC memory format of the convolutions")
    compile: Annotated[Literal["off", "default", "max-autotune"], BeforeValidator(_off)] = Field(
        "off",
        description="torch.compile of the training step's network: minutes at the first start, "
        "seconds afterwards, from its cache",
    )
    cuda_graphs: bool = Field(
        False, description="replay the compiled network as CUDA graphs; not with micro-batches"
    )
    activation_checkpointing: bool = Field(
        False, description="keep only each block's input of P, and compute the block again backward"
    )
    threads: PositiveInt | None = Field(
        None,
        description="CPU threads of torch in each process; null: its choice, or with several "
        "processes on a machine as many as share its cores",
    )
    timeout: PositiveInt = Field(
        1800,
        description="seconds that a process of several waits for the others before it fails. "
        "Longer than the slowest start, evaluation and checkpoint",
    )
    kernels: Literal["auto", "reference", "triton"] = Field(
        "auto",
        description="auto: the fused ones: Triton for the distractor score and patchify on a GPU "
        "where it is installed, C++ for patchify and batch norm with ReLU on a CPU; reference: "
        "plain torch; triton: an error where it does not run",
    )

    @model_validator(mode="after")
    def _check(self) -> RuntimeConfig:
        if self.cuda_graphs and self.compile == "off":
            raise ValueError("runtime.cuda_graphs is true, which needs runtime.compile: default")
        if self.activation_checkpointing and self.compile != "off":
            raise ValueError(
                "runtime.activation_checkpointing is true, which runtime.compile does not go with: "
                "set one of them off"
            )
        return self


class CheckpointConfig(_Section):
    """Which checkpoints of a stage stay on the disk, and what a full disk means."""

    keep: PositiveInt = Field(
        2, description="the newest so many; one more while a new one is written"
    )
    keep_every: PositiveInt | None = Field(
        None, description="and those of every so many steps, which nothing deletes; null: none"
    )
    on_error: Literal["stop", "continue"] = Field(
        "stop",
        description="a checkpoint, log line or picture that cannot be written (a full or read-only "
        "disk): stop ends the run; continue says so in a line and trains on",
    )


class OptimizerConfig(_Section):
    """Whose implementation of SGD."""

    backend: Literal["torch", "apex"] = Field(
        "torch", description="torch: its fused SGD; apex: that of NVIDIA's apex, GPU only"
    )


class Config(_Section):
    """One experiment."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = Field(
        ..., description="the run's folder is runs/NAME", json_schema_extra=FREE
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(0, description="seeds every draw")
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    pretrain: PretrainConfig = PretrainConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    checkpoint: CheckpointConfig = Field(CheckpointConfig(), json_schema_extra=FREE)
    optimizer: OptimizerConfig = Field(OptimizerConfig(), json_schema_extra=FREE)
    runtime: RuntimeConfig = Field(RuntimeConfig(), json_schema_extra=FREE)

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.data.image_size // self.model.patch_size

    @property
    def patches(self) -> int:
        """N, patches an image."""
        return self.grid**2

    @property
    def masked(self) -> int:
        """M = floor(mask_fraction x N)."""
        return math.floor(self.model.mask_fraction * self.patches)

    @model_validator(mode="after")
    def _check(self) -> Config:
        if self.data.image_size % self.model.patch_size:
            raise ValueError(
                f"data.image_size is {self.data.image_size}: it must be a multiple of "
                f"model.patch_size = {self.model.patch_size}"
            )
        if self.masked < 2:
            raise ValueError(
                f"model.mask_fraction is {self.model.mask_fraction}: it masks {self.masked} of "
                f"{self.patches} patches, and a task needs at least 2"
            )
        return self

    def to_yaml(self) -> str:
        """The whole configuration, defaults included, as a file that `load_config` reads."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def leaves(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, bool]]:
    """(dotted key, free to change on resume) of every section and value."""
    for name, field in section.model_fields.items():
        extra = field.json_schema_extra
        free = isinstance(extra, dict) and extra.get("resume") == _Free
        yield prefix + name, free
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            for key, inner in leaves(field.annotation, f"{prefix}{name}."):
                yield key, free or inner


def differing_keys(
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    sections: Sequence[str],
    unused: Sequence[str] = (),
) -> list[str]:
    """Dotted keys in `sections` whose values differ and that make another experiment.

    unused: keys there that this experiment does not look at.

    Both mappings are `Config.model_dump(mode="json")`; `old` may come from an older version, so
    a key that only one side has counts as differing.
    """

    def value(mapping: Any, key: str) -> Any:
        for part in key.split("."):
            mapping = mapping.get(part) if isinstance(mapping, Mapping) else None
        return mapping

    differing = []
    for key, free in leaves(Config):
        before, after = value(old, key), value(new, key)
        is_section = isinstance(before, Mapping) or isinstance(after, Mapping)
        matters = key.split(".")[0] in sections and not free and key not in unused
        if matters and not is_section and before != after:
            differing.append(f"{key} ({json.dumps(before)} -> {json.dumps(after)})")
    return differing
