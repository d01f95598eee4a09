"""The Triton kernel of `patchify` (patchify.py); reference.py defines what it computes."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

WARPS = 4
BLOCK = 1024  # values computed at a time; the paper's largest patch has 3,072


@triton.jit
def patch(
    images, flips, order, scale, offset, out,
    height, width, side, places, channels,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Make one patch of out (B, N, P, P, C) from images (B, H, W, C) and order (B, N), all dense.

    Neighbouring threads read and write neighbouring bytes. A location outside of the grid makes
    NaN, which reaches the loss; to raise an error would wait for the GPU.
    """
    item = tl.program_id(0).to(tl.int64)
    image = item // places
    columns = width // side
    place = tl.load(order + item)
    inside = (place >= 0) & (place < columns * (height // side))
    place = tl.where(inside, place, 0)
    flipped = tl.load(flips + image) != 0
    top, left = place // columns * side, place % columns * side
    size = side * side * channels
    for start in range(0, size, BLOCK):
        at = start + tl.arange(0, BLOCK)
        channel, pixel = at % channels, at // channels
        y, x = top + pixel // side, left + pixel % side
        x = tl.where(flipped, width - 1 - x, x)
        real = at < size
        source = ((image * height + y) * width + x) * channels + channel
        level = tl.load(images + source, mask=real, other=0).to(tl.float32)
        value = level * tl.load(scale + channel, mask=real) + tl.load(offset + channel, mask=real)
        value = tl.where(inside, value, float("nan"))
        tl.store(out + item * size + at, value.to(out.dtype.element_ty), mask=real)


def patchify(
    images: Tensor, flip: Tensor, order: Tensor, side: int, scale: Tensor, offset: Tensor,
    dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """Launch the kernel.

    Args:
        images: (B, H, W, C) uint8.
        flip: (B,) bool.
        order: (B, N) int64.
        side: P.
        scale: (C,) float32, the factor of a level 0..255.
        offset: (C,) float32, added after scaling.
        dtype: Of the result.

    Returns:
        (B, N, P, P, C) in `dtype`, dense.
    """
    _, height, width, channels = images.shape
    b, n = order.shape
    out = torch.empty(b, n, side, side, channels, dtype=dtype, device=images.device)
    with torch.cuda.device_of(images):  # Triton launches on the current GPU
        patch[(b * n,)](
            images.contiguous(), flip.contiguous(), order.contiguous(), scale, offset, out,
            height, width, side, n, channels, BLOCK=BLOCK, num_warps=WARPS,
        )  # fmt: skip
    return out
