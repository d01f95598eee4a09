"""Views: which part of an image a batch shows, and at which size."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from fastselfie.data.loaders.checks import require_numbers, require_whole

Crop = Literal["random_resized", "center", "pad", "none"]
PadMode = Literal["zero", "reflect", "none"]


@dataclass(frozen=True)
class View:
    """How to cut and resize an image.

    Args:
        size: Side of the square result, in pixels.
        crop: `random_resized`: a random area and ratio, as torchvision's RandomResizedCrop.
            `center`: the central square of 224/256 of the short side, as ImageNet is evaluated.
            `pad`: the central square, shifted by up to `pad` pixels at random, as CIFAR is trained.
            `none`: the image as it is; every image must be `size` x `size` pixels.
        area: Share of the image's area that `random_resized` takes, (low, high).
        ratio: Width over height of the part that `random_resized` takes, (low, high).
        pad: Pixels on each side that `pad` adds before it cuts.
        pad_mode: What `pad` adds: `zero`, `reflect`, or `none` for no shift at all.
        flip: Mirror half of the images. None: as `crop` is random, so `random_resized` and `pad`.
        count: How many times the view is drawn from each image.

    Raises:
        ValueError, TypeError: A value is not as described here.
    """

    size: int = 224
    crop: Crop = "random_resized"
    area: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    pad: int = 4
    pad_mode: PadMode = "zero"
    flip: bool | None = None
    count: int = 1

    def __post_init__(self) -> None:
        require_whole("size", self.size, 1)
        require_whole("pad", self.pad, 0)
        require_whole("count", self.count, 1)
        require_numbers("area", self.area, 2)
        require_numbers("ratio", self.ratio, 2)
        if self.crop not in get_args(Crop):
            raise ValueError(f"crop is {self.crop!r}: it must be one of {_listed(Crop)}")
        if self.pad_mode not in get_args(PadMode):
            raise ValueError(f"pad_mode is {self.pad_mode!r}: it must be one of {_listed(PadMode)}")
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise ValueError(f"area is {self.area}: it must rise within (0, 1]")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio is {self.ratio}: it must rise from above 0")
        if self.crop == "pad" and self.pad >= self.size:
            raise ValueError(f"pad is {self.pad}: it must be in [0, {self.size})")

    @property
    def flips(self) -> bool:
        """Whether half of the images are mirrored."""
        return self.crop in ("random_resized", "pad") if self.flip is None else self.flip

    @property
    def shift(self) -> int:
        """The largest shift of `pad`, in pixels each way; 0 for the other crops."""
        return self.pad if self.crop == "pad" and self.pad_mode != "none" else 0

    def without_augmentation(self) -> View:
        """The same size without random draws, as held-out images are seen."""
        if self.crop == "random_resized":
            return replace(self, crop="center", flip=False)
        return replace(self, pad=0, flip=False)


def _listed(choices: object) -> str:
    return ", ".join(get_args(choices))
