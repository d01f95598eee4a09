"""Boxes of pixels: which part of an image a view shows, and the reference way to read it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from fastselfie.data import draws
from fastselfie.data.draws import IntArray
from fastselfie.data.loaders.batch import Index
from fastselfie.data.loaders.view import View
from fastselfie.data.sources.base import Source
from fastselfie.errors import UserError
from fastselfie.kernels.host import gather_crops

# `center` on large images: resize the short side to size x 256 / 224, crop the center.
CENTER = 224 / 256


def boxes(view: View, number: int, seed: int, index: Index, sizes: IntArray) -> IntArray:
    """The box of each image that is resized to view.size: (B, 4) as (left, top, width, height).

    number: of the view, for its draws. sizes: (B, 2) as (width, height). For crop `pad` the box is
    the whole central square; the shift comes after.
    """
    samples, epochs = index
    if view.crop == "random_resized":
        return draws.resized_crops(seed, epochs, samples, sizes, view.area, view.ratio, number)
    share = CENTER if view.crop == "center" else 1.0
    side = np.maximum(1, np.rint(sizes.min(axis=1) * share).astype(np.int64))
    left, top = (sizes[:, 0] - side) // 2, (sizes[:, 1] - side) // 2
    return np.stack([left, top, side, side], axis=1)


def wrong_size(view: View, size: Sequence[int] | IntArray, name: str) -> str | None:
    """Return why `view` cannot show an image of this (width, height), None if it can.

    Only crop `none` takes images of one size alone. `name` says which image it is.
    """
    if view.crop != "none" or (size[0], size[1]) == (view.size, view.size):
        return None
    return (
        f"{name}: is {size[0]} x {size[1]} pixels, and crop none takes {view.size} x {view.size}: "
        "give another size, or crop center"
    )


def read_box(image: Image.Image, box: IntArray, size: int) -> npt.NDArray[np.uint8]:
    """The box of an RGB image, antialiased bilinear: (size, size, 3) uint8."""
    left, top, width, height = (int(v) for v in box)
    if (left, top, width, height) == (0, 0, size, size) == (0, 0, *image.size):
        return np.array(image)
    # Cut first: resize(box=...) would let the filter see pixels outside the box.
    inside = image.crop((left, top, left + width, top + height))
    return np.asarray(inside.resize((size, size), Image.Resampling.BILINEAR))


def read_image(
    source: Source,
    sample: int,
    epoch: int,
    views: Sequence[View],
    seed: int,
    out: Sequence[npt.NDArray[np.uint8]],
) -> str | None:
    """Decode an image with Pillow and cut it as each view asks.

    The shift of crop `pad` is left to `shift`, for a whole batch.

    Args:
        source: The images.
        sample: The index of the image in `source`.
        epoch: The epoch that its boxes are drawn in.
        views: The views.
        seed: Of all random draws.
        out: For each view an array (size, size, 3) that is written to.

    Returns:
        A line that says why the image cannot be read; None if it was.
    """
    try:
        image = source.image(sample)
    except UserError as error:
        return str(error)
    index = Index(np.asarray([sample]), np.asarray([epoch]))
    for number, (view, pixels) in enumerate(zip(views, out, strict=True)):
        if wrong := wrong_size(view, image.size, source.name(sample)):
            return wrong
        box = boxes(view, number, seed, index, np.asarray([image.size]))[0]
        pixels[:] = read_box(image, box, view.size)
    return None


def padded(images: npt.NDArray[np.uint8], pad: int, mode: str) -> npt.NDArray[np.uint8]:
    """(B, H, W, 3) -> (B, H + 2 pad, W + 2 pad, 3), mode zero or reflect."""
    widths = ((0, 0), (pad, pad), (pad, pad), (0, 0))
    return np.pad(images, widths, mode="constant" if mode == "zero" else "reflect")


def shift(images: npt.NDArray[np.uint8], view: View, number: int, seed: int, index: Index) -> None:
    """Pad and crop back, in place, as crop `pad` asks: (B, H, W, 3)."""
    pad = view.shift
    if not pad:
        return
    samples, epochs = index
    whole = padded(images, pad, view.pad_mode)
    rows, unflipped = np.arange(len(images)), np.zeros(len(images), dtype=np.bool_)
    gather_crops(whole, rows, draws.shifts(seed, epochs, samples, pad, number), unflipped, images)


def mirrored(images: Tensor, flip: Tensor) -> Tensor:
    """(B, H, W, C) uint8 with the images of `flip` mirrored."""
    if images.is_cuda:
        return torch.where(flip[:, None, None, None], images.flip(2), images)
    if not bool(flip.any()):
        return images
    out = torch.empty_like(images)
    rows, whole = np.arange(len(images)), np.zeros((len(images), 2), dtype=np.int64)
    gather_crops(images.numpy(), rows, whole, flip.numpy(), out.numpy())
    return out
