"""The configuration: typed and frozen, one file per section.

Each key is documented once, in the docstring below it. May import: errors.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, Field, model_validator

from fastselfie.config.base import FREE_TO_CHANGE, Free, Section
from fastselfie.config.data import DataConfig
from fastselfie.config.model import ModelConfig
from fastselfie.config.removed import effective_removed
from fastselfie.config.reproduce import ReproduceConfig
from fastselfie.config.runtime import CheckpointConfig, LogConfig, OptimizerConfig, RuntimeConfig
from fastselfie.config.stages import FinetuneConfig, PretrainConfig, StageConfig
from fastselfie.stage_names import PRETRAIN, StageName

__all__ = [
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "FinetuneConfig",
    "LogConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PretrainConfig",
    "ReproduceConfig",
    "RuntimeConfig",
    "StageConfig",
    "differing_keys",
    "leaves",
]


class Config(Section):
    """The configuration of one experiment."""

    name: Free[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]]
    """name of the experiment; the default folder is runs/NAME"""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """seed of all random draws"""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    pretrain: PretrainConfig = PretrainConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    reproduce: ReproduceConfig = ReproduceConfig()
    checkpoint: Free[CheckpointConfig] = CheckpointConfig()
    log: Free[LogConfig] = LogConfig()
    optimizer: Free[OptimizerConfig] = OptimizerConfig()
    runtime: Free[RuntimeConfig] = RuntimeConfig()

    @property
    def pretraining_data(self) -> DataConfig:
        """`data` with the crop that pretraining trains on. Pretraining is evaluated with `data`."""
        overrides = {key: getattr(self.pretrain, key) for key in ("crop", "area", "pad_mode")}
        changes = {key: value for key, value in overrides.items() if value is not None}
        return self.data.model_copy(update=changes)

    def stage_settings(self, stage: StageName) -> StageConfig:
        """The section of `stage`: the finetuned network and the control share one."""
        return self.pretrain if stage == PRETRAIN else self.finetune

    @property
    def grid(self) -> int:
        """Number of patches along a side."""
        return self.data.image_size // self.model.patch_size

    @property
    def patches(self) -> int:
        """N, the number of patches per image."""
        return self.grid**2

    @property
    def masked(self) -> int:
        """M, the number of masked patches."""
        return self.model.masked(self.patches)

    @property
    def patch_window(self) -> int:
        """The side of what P sees of a cell of the grid in pretraining, in pixels."""
        return self.model.patch_size - self.pretrain.patch_gap

    @model_validator(mode="after")
    def _check(self) -> Config:
        if self.data.image_size % self.model.patch_size:
            raise ValueError(
                f"data.image_size is {self.data.image_size}: must be a multiple of "
                f"model.patch_size = {self.model.patch_size}"
            )
        self._check_task()
        area = self.pretraining_data.area
        if not 0 < area[0] <= area[1] <= 1:
            raise ValueError(f"pretrain.area is {list(area)}: must be [least, most] within (0, 1]")
        if self.data.loader == "resident" and self.pretraining_data.crop != "pad":
            raise ValueError("data.loader is resident, which supports only pretrain.crop: pad")
        self._check_progressive()
        return self

    def _check_task(self) -> None:
        """Check that there are patches to choose from, and that P can take them."""
        if self.masked < 2:  # mask_fraction is below 1, so at least one patch is visible
            raise ValueError(
                f"model.mask_fraction is {self.model.mask_fraction}: masks {self.masked} of "
                f"{self.patches} patches, but at least 2 are needed: "
                f"{'increase it' if self.grid > 1 else 'decrease model.patch_size'}"
            )
        if self.pretrain.patch_gap and self.patch_window < self.model.stride:
            raise ValueError(
                f"pretrain.patch_gap is {self.pretrain.patch_gap}: leaves "
                f"{max(0, self.patch_window)} pixels of a patch of {self.model.patch_size}, but at "
                f"least {self.model.stride} are needed, the stride of P with model.stem = "
                f"{self.model.stem}: decrease it"
            )

    def _check_progressive(self) -> None:
        """Check that the image sizes of `finetune.progressive` are possible."""
        sizes, stride = self.finetune.progressive, self.model.stride
        of_patches = self.finetune.form == "attention_pooling"
        # The number of patches is constant, and each needs one position of P's output map. A whole
        # image must be halved evenly.
        least, unit = (self.grid * stride, self.grid) if of_patches else (2 * stride, 2 * stride)
        rising = all(a < b for a, b in pairwise((*sizes, self.data.image_size)))
        if not rising or any(size % unit or size < least for size in sizes):
            raise ValueError(
                f"finetune.progressive is {list(sizes)}: must increase, in multiples of {unit}, "
                f"from at least {least} to below data.image_size = {self.data.image_size}"
            )
        if sizes and self.runtime.cuda_graphs:
            raise ValueError(
                f"finetune.progressive is {list(sizes)}, but CUDA graphs take only one size: set "
                "runtime.cuda_graphs=false"
            )
        if sizes and self.runtime.compile not in ("auto", "off"):
            raise ValueError(
                f"finetune.progressive is {list(sizes)}, but a compiled step takes only one size: "
                "set runtime.compile=off"
            )

    def to_yaml(self) -> str:
        """Return all keys, including defaults, as YAML that `load_config` reads."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def leaves(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, bool]]:
    """Yield every section and value of a configuration.

    Yields:
        The dotted key, and whether a resumed run may change its value.
    """
    for name, field in section.model_fields.items():
        free = FREE_TO_CHANGE in field.metadata
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
    """Return the keys in `sections` whose change makes a different experiment.

    Args:
        old: `Config.model_dump(mode="json")`, possibly of an older version: a key that it lacks had
            the effect of today's default.
        new: The same of the present configuration.
        sections: Top-level sections to compare.
        unused: Dotted keys that this experiment does not use.

    Returns:
        One string per key: "key (old value -> new value)".
    """
    defaults = Config(name="any").model_dump(mode="json")

    def value(mapping: Any, key: str) -> Any:
        fallback = defaults
        for part in key.split("."):
            fallback = fallback[part]
            mapping = mapping.get(part, fallback) if isinstance(mapping, Mapping) else fallback
        return mapping

    differing = []
    for key, free in leaves(Config):
        before, after = value(old, key), value(new, key)
        is_section = isinstance(before, Mapping) or isinstance(after, Mapping)
        matters = key.split(".")[0] in sections and not free and key not in unused
        if matters and not is_section and before != after:
            differing.append(f"{key} ({json.dumps(before)} -> {json.dumps(after)})")
    removed_old, removed_new = (
        {key: json.dumps(value) for key, value, _ in effective_removed(values)}
        for values in (old, new)
    )
    for key in removed_old | removed_new:
        before, after = (found.get(key, "removed") for found in (removed_old, removed_new))
        if key.split(".")[0] in sections and key not in unused and before != after:
            differing.append(f"{key} ({before} -> {after})")
    return differing
