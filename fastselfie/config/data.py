"""The section `data`: datasets, augmentation and loaders."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fastselfie.config.base import Free, PositiveInt, Section, Text


class DataConfig(Section):
    """Datasets, augmentation and loaders."""

    train: Free[Text | list[Text] | None] = None
    """training images: an image folder (one sub-folder per class, loose images without labels, or
    train/ and test/ or val/ inside), a .beton file of `fastselfie prepare`, several of these (a
    folder, a pattern such as train-*.beton, or a list), a folder of CIFAR, ImageNet 32x32 or IDX
    (MNIST) files, or .tar (WebDataset) or .parquet files"""
    test: Free[Text | list[Text] | None] = None
    """held-out images, of the same kinds; null: another part of data.train with labels of the same
    classes, otherwise a split"""
    held_out: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """fraction of each class to hold out if data.train has no such part"""
    limit: PositiveInt | None = None
    """use at most this many images of each split"""
    image_size: PositiveInt = 224
    """side of the square image, in pixels"""
    crop: Literal["resized", "pad"] = "resized"
    """resized: a random area and aspect ratio, resized to image_size; pad: a random shift by up to
    data.pad pixels"""
    area: tuple[float, float] = (0.08, 1.0)
    """crop: resized: range of the area fraction"""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """crop: resized: range of width / height"""
    pad: Annotated[int, Field(ge=0)] = 4
    """crop: pad: pixels added on each side"""
    pad_mode: Literal["zero", "reflect", "none"] = "zero"
    """pixels beyond the border: zero (as in the paper) or reflect; both reveal the position of a
    patch. none: no shift, where JPEG's block grid reveals it"""
    flip: bool = True
    """mirror half of the images horizontally"""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """mean of each channel, for pixels in 0..1"""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """standard deviation of each channel, for pixels in 0..1"""
    loader: Free[Literal["auto", "native", "folder", "resident", "ffcv", "dali", "synthetic"]] = (
        "auto"
    )
    """native: decodes only a crop of each JPEG in a .beton file; resident: keeps the whole dataset
    on the device (small images); folder: Pillow in worker processes; ffcv, dali: these libraries,
    installed as extras; synthetic: random pixels, no files"""
    workers: Free[Annotated[int, Field(ge=0)] | None] = None
    """decoding threads or processes; null: one per core"""
    on_error: Literal["raise", "skip"] = "raise"
    """if an image cannot be decoded: raise stops and names it; skip replaces it with another image,
    of its batch if one is good, and counts it"""
    max_skipped_in_a_row: Free[PositiveInt] = 100
    """on_error: skip stops after this many consecutive images, since the disk itself has probably
    failed"""

    @model_validator(mode="after")
    def _check(self) -> DataConfig:
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise ValueError(f"data.area is {list(self.area)}: must be [least, most] within (0, 1]")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"data.ratio is {list(self.ratio)}: must be [least, most] above 0")
        if self.loader == "resident" and self.crop != "pad":
            raise ValueError("data.loader is resident, which supports only data.crop: pad")
        if self.pad >= self.image_size and self.crop == "pad":
            raise ValueError(
                f"data.pad is {self.pad}: must be below data.image_size = {self.image_size}"
            )
        return self
