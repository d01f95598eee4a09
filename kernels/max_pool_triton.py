"""The Triton kernels of `max_pool` (max_pool.py), and their launches.

Imported only where Triton runs: on a GPU, or with TRITON_INTERPRET=1 on a CPU. max_pool.py has the
operators and their gradient; reference.py defines the operation. The speed of these kernels on a
GPU has not been measured.

Window (k, l) covers the rows 2k - 1 to 2k + 1 and the columns 2l - 1 to 2l + 1. Its square is the
rows 2k and 2k + 1 and the columns 2l and 2l + 1: each pixel is in one square. The four pixels of a
square are in window (k, l), and some are in (k, l + 1), (k + 1, l) and (k + 1, l + 1) too. No other
window contains them.

    forward     window_maximum   reads x, writes y and the places
    backward    square_gradient  reads dy and the places, writes dx: each pixel sums what it gets

A pixel of x is in up to 4 windows, and a value of dy belongs to up to 4 squares. The programs that
read it again are the same or neighbours, so repeated reads come from a cache.

In half precision an output costs 22 bytes: forward 8 for x, 2 for y and 1 for the place; backward
1, 2 for dy and 8 for dx. Without places the backward pass would read x: 28 bytes. And x would have
to stay in memory until then, 8 bytes in place of 1. Two places in a byte would save 1 of the 22.

Suffixes of names: r row of a tile, which is a window, c channel.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastselfie.kernels.matrix_tiles_triton import channels_of, tile_at
from fastselfie.kernels.products_triton import rounded

WARPS = 4
_TILE = 1024  # entries of a program: 8 a thread, 16 bytes in half precision


@triton.jit
def _windows(number, H, W, BR: tl.constexpr):
    """Return image, k and l of a tile's windows, (BR, 1) each."""
    row = (number * BR + tl.arange(0, BR))[:, None]
    rows, columns = tl.cdiv(H, 2), tl.cdiv(W, 2)
    above = row // columns
    return (above // rows).to(tl.int64), above % rows, row % columns  # 64 bits: as in tile_at


@triton.jit
def window_maximum(x, y, places, R, C, H, W, BR: tl.constexpr, BC: tl.constexpr):
    """Write the maximum of R windows, and the place of it: the first of equals, or the last NaN."""
    number, c = channels_of(C, BC)
    at, real = tile_at(number, c, R, C, BR)
    image, k, l = _windows(number, H, W, BR)  # noqa: E741
    best = tl.full((BR, BC), float("-inf"), tl.float32)
    first = tl.where(k == 0, 3, 0) + tl.where(l == 0, 1, 0)  # of the places inside of the map
    place = tl.zeros((BR, BC), tl.int32) + first
    for n in tl.static_range(9):
        i, j = 2 * k + n // 3 - 1, 2 * l + n % 3 - 1
        inside = real & (i >= 0) & (i < H) & (j >= 0) & (j < W)
        pixel = (image * H + i) * W + j
        value = tl.load(x + pixel * C + c[None, :], mask=inside, other=float("-inf"))
        value = value.to(tl.float32)
        better = (value > best) | (value != value)  # noqa: PLR0124 # as torch: NaN passes through
        best = tl.where(better, value, best)
        place = tl.where(better, n, place)
    tl.store(y + at, best.to(y.dtype.element_ty), mask=real)
    tl.store(places + at, place.to(tl.uint8), mask=real)


@triton.jit
def _window_gradient(grad_y, places, at, real):
    """Return the gradient of each window in float32, and the place that gets it."""
    gradient = tl.load(grad_y + at, mask=real, other=0.0).to(tl.float32)
    return gradient, tl.load(places + at, mask=real, other=255)


@triton.jit
def square_gradient(grad_y, places, grad_x, R, C, H, W, BR: tl.constexpr, BC: tl.constexpr):
    """Write the gradients of R squares of 2x2 pixels: always the same terms in the same order."""
    number, c = channels_of(C, BC)
    at, real = tile_at(number, c, R, C, BR)
    image, k, l = _windows(number, H, W, BR)  # noqa: E741
    columns = tl.cdiv(W, 2)
    right, below = l + 1 < columns, k + 1 < tl.cdiv(H, 2)
    here, here_at = _window_gradient(grad_y, places, at, real)
    east, east_at = _window_gradient(grad_y, places, at + C, real & right)
    south, south_at = _window_gradient(grad_y, places, at + columns * C, real & below)
    corner, corner_at = _window_gradient(
        grad_y, places, at + (columns + 1) * C, real & right & below
    )
    pixel = grad_x + ((image * H + 2 * k) * W + 2 * l) * C + c[None, :]
    in_row, in_column = real & (2 * l + 1 < W), real & (2 * k + 1 < H)

    gradient = tl.where(here_at == 4, here, 0.0)
    tl.store(pixel, rounded(gradient, grad_x.dtype.element_ty), mask=real)

    gradient = tl.where(here_at == 5, here, 0.0) + tl.where(east_at == 3, east, 0.0)
    tl.store(pixel + C, rounded(gradient, grad_x.dtype.element_ty), mask=in_row)

    pixel += W * C
    gradient = tl.where(here_at == 7, here, 0.0) + tl.where(south_at == 1, south, 0.0)
    tl.store(pixel, rounded(gradient, grad_x.dtype.element_ty), mask=in_column)

    gradient = tl.where(here_at == 8, here, 0.0) + tl.where(east_at == 6, east, 0.0)
    gradient += tl.where(south_at == 2, south, 0.0)
    gradient += tl.where(corner_at == 0, corner, 0.0)
    tl.store(pixel + C, rounded(gradient, grad_x.dtype.element_ty), mask=in_row & in_column)


# --- launch ---------------------------------------------------------------------------------------


def forward(x: Tensor, y: Tensor, places: Tensor) -> None:
    """Launch the forward pass.

    Args:
        x: (B, C, H, W). All tensors here are dense and channels-last.
        y: (B, C, ceil(H / 2), ceil(W / 2)), in x's dtype; written.
        places: As y, uint8; written.
    """
    tiles, sizes = _grid(y, x)
    window_maximum[tiles](x, y, places, **sizes)


def backward(grad_y: Tensor, places: Tensor, grad_x: Tensor) -> None:
    """Launch the backward pass.

    Args:
        grad_y: As y in `forward`.
        places: Of `forward`.
        grad_x: As x in `forward`; written.
    """
    tiles, sizes = _grid(grad_y, grad_x)
    square_gradient[tiles](grad_y, places, grad_x, **sizes)


def tile_of(channels: int) -> tuple[int, int]:
    """Return the windows and the channels of a tile."""
    width = min(triton.next_power_of_2(channels), 64)
    return _TILE // width, width


def _grid(pooled: Tensor, whole: Tensor) -> tuple[tuple[int], dict[str, int]]:
    """Return the number of programs, and the arguments that both kernels share."""
    _, c, height, width = whole.shape
    r = pooled.numel() // c
    br, bc = tile_of(c)
    sizes = {"R": r, "C": c, "H": height, "W": width, "BR": br, "BC": bc, "num_warps": WARPS}
    return (triton.cdiv(r, br) * triton.cdiv(c, bc),), sizes
