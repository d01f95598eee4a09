"""Where the images are, and what is done to them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fastselfie.config.base import FREE, PositiveInt, Section


class DataConfig(Section):
    """Where the images are, and what is done to them before the network sees them."""

    train: str | None = Field(
        None,
        min_length=1,
        description="an image folder (one sub-folder a class, loose images without labels, or "
        "train/ and test/ or val/ inside), a .beton file of `fastselfie prepare`, a folder of "
        "CIFAR, ImageNet 32x32 or IDX files (MNIST), or .tar (WebDataset) or .parquet files",
        json_schema_extra=FREE,
    )
    test: str | None = Field(
        None,
        min_length=1,
        description="held-out images, same kinds; null: the first part beside data.train's "
        "training part that has labels of its classes, else a split",
        json_schema_extra=FREE,
    )
    held_out: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        0.1, description="share of each class held out when data.train has no such part"
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
        "place of a patch away, and so do the mirrored pixels of reflect; none: no shift, where "
        "JPEG's block grid does",
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
