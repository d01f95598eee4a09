"""The section `data`: datasets, augmentation and loaders."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fastselfie.config.base import FREE, PositiveInt, Section


class DataConfig(Section):
    """Datasets, augmentation and loaders."""

    train: str | None = Field(
        None,
        min_length=1,
        description="training images: an image folder (one sub-folder per class, loose images "
        "without labels, or train/ and test/ or val/ inside), a .beton file of `fastselfie "
        "prepare`, a folder of CIFAR, ImageNet 32x32 or IDX (MNIST) files, or .tar (WebDataset) or "
        ".parquet files",
        json_schema_extra=FREE,
    )
    test: str | None = Field(
        None,
        min_length=1,
        description="held-out images, of the same kinds; null: another part of data.train with "
        "labels of the same classes, otherwise a split",
        json_schema_extra=FREE,
    )
    held_out: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        0.1, description="fraction of each class to hold out if data.train has no such part"
    )
    limit: PositiveInt | None = Field(
        None, description="use at most this many images of each split"
    )
    image_size: PositiveInt = Field(224, description="side of the square image, in pixels")
    crop: Literal["resized", "pad"] = Field(
        "resized",
        description="resized: a random area and aspect ratio, resized to image_size; pad: a random "
        "shift by up to data.pad pixels",
    )
    area: tuple[float, float] = Field(
        (0.08, 1.0), description="crop: resized: range of the area fraction"
    )
    ratio: tuple[float, float] = Field(
        (3 / 4, 4 / 3), description="crop: resized: range of width / height"
    )
    pad: Annotated[int, Field(ge=0)] = Field(4, description="crop: pad: pixels added on each side")
    pad_mode: Literal["zero", "reflect", "none"] = Field(
        "zero",
        description="pixels beyond the border: zero (as in the paper) or reflect; both reveal the "
        "position of a patch. none: no shift, where JPEG's block grid reveals it",
    )
    flip: bool = Field(True, description="mirror half of the images horizontally")
    mean: tuple[float, float, float] = Field(
        (0.485, 0.456, 0.406), description="mean of each channel, for pixels in 0..1"
    )
    std: tuple[float, float, float] = Field(
        (0.229, 0.224, 0.225), description="standard deviation of each channel, for pixels in 0..1"
    )
    loader: Literal["auto", "native", "folder", "resident", "ffcv", "dali", "synthetic"] = Field(
        "auto",
        description="native: decodes only a crop of each JPEG in a .beton file; resident: keeps "
        "the whole dataset on the device (small images); folder: Pillow in worker processes; "
        "ffcv, dali: these libraries, installed as extras; synthetic: random pixels, no files",
        json_schema_extra=FREE,
    )
    workers: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="decoding threads or processes; null: one per core",
        json_schema_extra=FREE,
    )
    on_error: Literal["raise", "skip"] = Field(
        "raise",
        description="if an image cannot be decoded: raise stops and names it; skip replaces it "
        "with another image, of its batch if one is good, and counts it",
    )
    max_skipped_in_a_row: PositiveInt = Field(
        100,
        description="on_error: skip stops after this many consecutive images, since the disk "
        "itself has probably failed",
        json_schema_extra=FREE,
    )

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
