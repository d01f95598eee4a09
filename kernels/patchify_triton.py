"""The Triton kernel of `patchify` (patchify.py); reference.py defines what it computes."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastselfie.kernels.patch_changes import PatchChanges

WARPS = 4
BLOCK = 1024  # values computed at a time; the paper's largest patch has 3,072


@triton.jit
def patch(
    images, flips, order, corners, grey, scale, offset, out,
    height, width, side, window, places, channels,
    FACTORS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Make one patch of out (B, N, W, W, C) from images (B, H, W, C) and order (B, N), all dense.

    Neighbouring threads read and write neighbouring bytes. A location outside of the grid, or a
    window outside of its cell, makes NaN, which reaches the loss; to raise an error would wait for
    the GPU. FACTORS: whether each patch has a scale and an offset of its own.
    """
    item = tl.program_id(0).to(tl.int64)
    image = item // places
    columns, rows = width // side, height // side
    place = tl.load(order + item)
    inside = (place >= 0) & (place < columns * rows)
    place = tl.where(inside, place, 0)
    flipped = tl.load(flips + image) != 0
    at_place = image * (columns * rows) + place
    down, right = (side - window) // 2, (side - window) // 2
    if corners is not None:
        down, right = tl.load(corners + 2 * at_place), tl.load(corners + 2 * at_place + 1)
        inside &= (tl.minimum(down, right) >= 0) & (tl.maximum(down, right) <= side - window)
        down, right = tl.where(inside, down, 0), tl.where(inside, right, 0)
    drops_colour = False
    if grey is not None:
        drops_colour = tl.load(grey + at_place) != 0
    if FACTORS:
        scale += at_place * channels
        offset += at_place * channels
    top, left = place // columns * side + down, place % columns * side + right
    size = window * window * channels
    for start in range(0, size, BLOCK):
        at = start + tl.arange(0, BLOCK)
        channel, pixel = at % channels, at // channels
        y, x = top + pixel // window, left + pixel % window
        x = tl.where(flipped, width - 1 - x, x)
        real = at < size
        source = images + ((image * height + y) * width + x) * channels
        level = tl.load(source + channel, mask=real, other=0).to(tl.int32)
        if grey is not None:
            coloured = real & drops_colour
            red = tl.load(source, mask=coloured, other=0).to(tl.int32)
            green = tl.load(source + 1, mask=coloured, other=0).to(tl.int32)
            blue = tl.load(source + 2, mask=coloured, other=0).to(tl.int32)
            luma = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16
            level = tl.where(drops_colour, luma, level)
        value = level.to(tl.float32) * tl.load(scale + channel, mask=real)
        value = tl.where(inside, value + tl.load(offset + channel, mask=real), float("nan"))
        tl.store(out + item * size + at, value.to(out.dtype.element_ty), mask=real)


def patchify(
    images: Tensor, flip: Tensor, order: Tensor, side: int, scale: Tensor, offset: Tensor,
    dtype: torch.dtype, changes: PatchChanges,
) -> Tensor:  # fmt: skip
    """Launch the kernel.

    Args:
        images: (B, H, W, C) uint8.
        flip: (B,) bool.
        order: (B, N) int64.
        side: P.
        scale: (C,) or (B, G, C) float32, the factor of a level 0..255.
        offset: As scale, added after scaling.
        dtype: Of the result.
        changes: Their tone is in scale and offset.

    Returns:
        (B, N, W, W, C) in `dtype`, dense.
    """
    _, height, width, channels = images.shape
    b, n = order.shape
    window = changes.window_of(side)
    out = torch.empty(b, n, window, window, channels, dtype=dtype, device=images.device)
    corners, grey = (None if v is None else v.contiguous() for v in changes[1:3])
    with torch.cuda.device_of(images):  # Triton launches on the current GPU
        patch[(b * n,)](
            images.contiguous(), flip.contiguous(), order.contiguous(), corners, grey,
            scale.contiguous(), offset.contiguous(), out, height, width, side, window, n, channels,
            FACTORS=scale.dim() > 1, BLOCK=BLOCK, num_warps=WARPS,
        )  # fmt: skip
    return out
