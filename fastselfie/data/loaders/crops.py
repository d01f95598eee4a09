"""Boxes of pixels: which part of an image a batch shows, and the reference way to read it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from fastselfie.config import DataConfig
from fastselfie.data import random as rng
from fastselfie.data.random import IntArray
from fastselfie.kernels.host import gather_crops

# Evaluation on large images: resize the short side to size x 256 / 224, crop the centre.
CENTRE = 224 / 256


def boxes(
    data: DataConfig, seed: int, index: tuple[IntArray, IntArray], sizes: IntArray, augment: bool
) -> IntArray:
    """The box of each image that is resized to image_size: (B, 4) as (left, top, width, height).

    index: (samples, epochs). sizes: (B, 2) as (width, height). For crop: pad the box is the
    whole central square; the shift comes after.
    """
    samples, epochs = index
    if augment and data.crop == "resized":
        return rng.resized_crops(seed, epochs, samples, sizes, data.area, data.ratio)
    share = CENTRE if data.crop == "resized" else 1.0
    side = np.maximum(1, np.rint(sizes.min(axis=1) * share).astype(np.int64))
    left, top = (sizes[:, 0] - side) // 2, (sizes[:, 1] - side) // 2
    return np.stack([left, top, side, side], axis=1)


def read_box(image: Image.Image, box: IntArray, size: int) -> npt.NDArray[np.uint8]:
    """The box of an RGB image, antialiased bilinear: (size, size, 3) uint8."""
    left, top, width, height = (int(v) for v in box)
    if (left, top, width, height) == (0, 0, size, size) == (0, 0, *image.size):
        return np.array(image)
    # Cut first: resize(box=...) would let the filter see pixels outside the box.
    inside = image.crop((left, top, left + width, top + height))
    return np.asarray(inside.resize((size, size), Image.Resampling.BILINEAR))


def padded(images: npt.NDArray[np.uint8], pad: int, mode: str) -> npt.NDArray[np.uint8]:
    """(B, H, W, 3) -> (B, H + 2 pad, W + 2 pad, 3), mode zero or reflect."""
    widths = ((0, 0), (pad, pad), (pad, pad), (0, 0))
    return np.pad(images, widths, mode="constant" if mode == "zero" else "reflect")


def shift(
    images: npt.NDArray[np.uint8], data: DataConfig, seed: int, index: tuple[IntArray, IntArray]
) -> None:
    """Pad and crop back, in place, as crop: pad asks: (B, H, W, 3). index: (samples, epochs)."""
    pad = shift_of(data)
    if not pad:
        return
    samples, epochs = index
    whole = padded(images, pad, data.pad_mode)
    rows, unflipped = np.arange(len(images)), np.zeros(len(images), dtype=np.bool_)
    gather_crops(whole, rows, rng.shifts(seed, epochs, samples, pad), unflipped, images)


def shift_of(data: DataConfig) -> int:
    """Pixels that crop: pad shifts by at the most, each way."""
    return data.pad if data.crop == "pad" and data.pad_mode != "none" else 0
