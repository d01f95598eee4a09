"""The Triton kernels of `norm_relu` (norm_relu.py), and their launches.

Imported only where Triton runs: on a GPU, or with TRITON_INTERPRET=1 on a CPU. norm_relu.py has the
operators and their gradient; reference.py defines the operation.

The kernels take a channels-last tensor as a matrix of R pixels by C channels. Memory traffic is
their cost, so what counts is how often they read or write such a matrix:

    forward     moments          reads x             (with a shortcut: reads both, writes the sum)
                                 not launched if pointwise_triton.py has written x and its moments
                statistics       merges the partial moments; (C,) only
                activate         reads x, writes y
    backward    gradient_sums    reads x and dy
                gradient_line    merges the partial sums; (C,) only
                gradient_rows    reads x and dy, writes dx  (with a shortcut: also reads dsum)

These are 8 passes, and 3 more with a shortcut. Separate operations make 13: torch's batch norm 3
forward and 5 backward, its ReLU 2 and 3. They also make 3 to add the shortcut and 3 to add the two
gradients of the sum. The ReLU's mask is computed again from x, which is cheaper than to read y.

P programs share the rows of a block of channels and write partial results. One more program merges
those of some channels. Without atomics the result has the same bits every time, on a GPU of any
size. The second kernel of a pass goes through the rows from the end, which the first one read last:
what is still in the L2 cache is not read from memory again.

Suffixes of names: r row of a tile, c channel, p program.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastselfie.kernels.matrix_tiles_triton import (
    PRODUCT_ROWS,
    WARPS,
    channels_of,
    merged_by,
    padded,
    rows_read,
    tile_at,
    tiling_of,
    vector,
)
from fastselfie.kernels.products_triton import rounded

# --- forward --------------------------------------------------------------------------------------


@triton.jit
def moments(x, shortcut, total, partial, R, C, P, BR: tl.constexpr, BC: tl.constexpr):
    """Write partial (P, 2, C): the mean of a program's rows, and their squared distances from it.

    With a shortcut these are the moments of total = x + shortcut, which is written. Each entry of
    the tile has moments of its own (Welford, 1962): sums of squares would cancel for a large mean.
    """
    p, c = channels_of(C, BC)
    mean_rc, squares_rc = tl.zeros((BR, BC), tl.float32), tl.zeros((BR, BC), tl.float32)
    seen = 0.0
    for tile in range(p, tl.cdiv(R, BR), P):
        at, real = tile_at(tile, c, R, C, BR)
        value = tl.load(x + at, mask=real, other=0.0)
        if shortcut is not None:
            added = value.to(tl.float32) + tl.load(shortcut + at, mask=real).to(tl.float32)
            value = rounded(added, value.dtype)
            tl.store(total + at, value, mask=real)
        seen += 1.0
        distance = value.to(tl.float32) - mean_rc
        mean_rc += tl.where(real, distance * (1.0 / seen), 0.0)
        squares_rc += tl.where(real, distance * (value.to(tl.float32) - mean_rc), 0.0)
    # Only the matrix's last tile may lack rows: there an entry has one value less.
    tiles = tl.cdiv(R, BR)
    lacks_r = ((tiles - 1) * BR + tl.arange(0, BR) >= R) & ((tiles - 1) % P == p)
    count_r = (tl.cdiv(tiles - p, P) - lacks_r.to(tl.int32)).to(tl.float32)[:, None]
    mean_c = tl.sum(count_r * mean_rc, 0) / rows_read(p, R, P, BR)
    apart = mean_rc - mean_c[None, :]
    squares_c = tl.sum(squares_rc + count_r * apart * apart, 0)
    tl.store(partial + 2 * p * C + c, mean_c, mask=c < C)
    tl.store(partial + (2 * p + 1) * C + c, squares_c, mask=c < C)


@triton.jit
def statistics(
    partial, weight, found, R, C, P, epsilon, BR: tl.constexpr, PP: tl.constexpr, BC: tl.constexpr
):
    """Merge partial (P, 2, C) into found (4, C), see `forward`."""
    _, c = channels_of(C, BC)
    p = tl.arange(0, PP)
    at, real = 2 * p[:, None] * C + c[None, :], (p < P)[:, None] & (c < C)[None, :]
    count_p = tl.where(p < P, rows_read(p, R, P, BR), 0).to(tl.float32)[:, None]
    mean_pc = tl.load(partial + at, mask=real, other=0.0)
    squares_pc = tl.load(partial + at + C, mask=real, other=0.0)
    mean_c = tl.sum(count_p * mean_pc, 0) / R
    apart = mean_pc - mean_c[None, :]
    squares_c = tl.sum(squares_pc + count_p * apart * apart, 0)
    inverse_c = tl.div_rn(1.0, tl.sqrt_rn(squares_c / R + epsilon))
    inside = c < C
    tl.store(found + c, mean_c, mask=inside)
    tl.store(found + C + c, squares_c / (R - 1), mask=inside)
    tl.store(found + 2 * C + c, inverse_c, mask=inside)
    tl.store(found + 3 * C + c, tl.load(weight + c, mask=inside) * inverse_c, mask=inside)


@triton.jit
def _normalised(value, found, bias, c, C):
    """Return x - mean, and batch norm of x, in float32: with the same bits in every kernel."""
    distance = value.to(tl.float32) - vector(found, 0, c, C)
    return distance, tl.fma(distance, vector(found, 3, c, C), vector(bias, 0, c, C))


@triton.jit
def activate(x, found, bias, y, R, C, BR: tl.constexpr, BC: tl.constexpr):
    """Write y = relu(norm(x)), a tile for each program."""
    number, c = channels_of(C, BC)
    at, real = tile_at(tl.cdiv(R, BR) - 1 - number, c, R, C, BR)
    value = tl.load(x + at, mask=real, other=0.0)
    _, normal = _normalised(value, found, bias, c, C)
    # Written so that NaN passes through: max(0, NaN) could be 0.
    tl.store(y + at, rounded(tl.where(normal < 0.0, 0.0, normal), value.dtype), mask=real)


# --- backward -------------------------------------------------------------------------------------


@triton.jit
def _behind_relu(x, gradient, found, bias, at, real, c, C):
    """Return x - mean, and the gradient behind the ReLU, in float32; 0 outside of the matrix."""
    value = tl.load(x + at, mask=real, other=0.0)
    passed = tl.load(gradient + at, mask=real, other=0.0).to(tl.float32)
    distance, normal = _normalised(value, found, bias, c, C)
    return distance, tl.where(normal > 0.0, passed, 0.0)


@triton.jit
def gradient_sums(x, gradient, found, bias, partial, R, C, P, BR: tl.constexpr, BC: tl.constexpr):
    """Write partial (P, 2, C): sums of the gradient behind the ReLU, and of it times x - mean."""
    p, c = channels_of(C, BC)
    plain_rc, weighted_rc = tl.zeros((BR, BC), tl.float32), tl.zeros((BR, BC), tl.float32)
    for tile in range(p, tl.cdiv(R, BR), P):
        at, real = tile_at(tile, c, R, C, BR)
        distance, passed = _behind_relu(x, gradient, found, bias, at, real, c, C)
        plain_rc += passed
        weighted_rc += passed * distance
    tl.store(partial + 2 * p * C + c, tl.sum(plain_rc, 0), mask=c < C)
    tl.store(partial + (2 * p + 1) * C + c, tl.sum(weighted_rc, 0), mask=c < C)


@triton.jit
def gradient_line(
    partial, found, line, grad_weight, grad_bias, R, C, P, PP: tl.constexpr, BC: tl.constexpr
):
    """Merge partial (P, 2, C) into the gradients (C,) and line (2, C), see `gradient_rows`."""
    _, c = channels_of(C, BC)
    p = tl.arange(0, PP)
    at, real = 2 * p[:, None] * C + c[None, :], (p < P)[:, None] & (c < C)[None, :]
    plain_c = tl.sum(tl.load(partial + at, mask=real, other=0.0), 0)
    weighted_c = tl.sum(tl.load(partial + at + C, mask=real, other=0.0), 0)
    inside = c < C
    inverse_c = tl.load(found + 2 * C + c, mask=inside, other=0.0)
    scale_c = tl.load(found + 3 * C + c, mask=inside, other=0.0)
    tl.store(grad_bias + c, plain_c, mask=inside)
    tl.store(grad_weight + c, weighted_c * inverse_c, mask=inside)
    # dx = scale (g - mean(g) - xhat mean(g xhat)), xhat = (x - mean) inverse
    tl.store(line + c, -scale_c * inverse_c * inverse_c * weighted_c / R, mask=inside)
    tl.store(line + C + c, -scale_c * plain_c / R, mask=inside)


@triton.jit
def gradient_rows(
    x, gradient, grad_total, found, bias, line, grad_x, R, C, BR: tl.constexpr, BC: tl.constexpr
):
    """Write dx = scale g + slope (x - mean) + offset, and the gradient of the sum added to it.

    g is the gradient behind the ReLU; slope and offset are line (2, C).
    """
    number, c = channels_of(C, BC)
    at, real = tile_at(tl.cdiv(R, BR) - 1 - number, c, R, C, BR)
    distance, passed = _behind_relu(x, gradient, found, bias, at, real, c, C)
    slope, offset = vector(line, 0, c, C), vector(line, 1, c, C)
    dx = vector(found, 3, c, C) * passed + (slope * distance + offset)
    if grad_total is not None:
        dx += tl.load(grad_total + at, mask=real, other=0.0).to(tl.float32)
    tl.store(grad_x + at, rounded(dx, grad_x.dtype.element_ty), mask=real)


# --- launch ---------------------------------------------------------------------------------------


def forward(
    x: Tensor,
    shortcut: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    epsilon: float,
    partial: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the forward pass.

    Args:
        x: (B, C, H, W), dense and channels-last; shortcut: the same, or None.
        weight: (C,) float32, and bias: the same; both dense.
        epsilon: Added to the variance.
        partial: (P, 2, C) float32, the moments of x if pointwise_triton.py took them, else None.
            There is no shortcut with them.

    Returns:
        y as x; the sum, as x, or an empty tensor without a shortcut; and found (4, C) float32: the
        mean, the unbiased variance for the running statistics, 1 / sqrt(biased variance + epsilon),
        and that times the weight.
    """
    c = x.shape[1]
    r = x.numel() // c
    tiling = tiling_of(r, c)
    y, total = torch.empty_like(x), x.new_empty(0) if shortcut is None else torch.empty_like(x)
    found = weight.new_empty(4, c)
    tile = {"BR": tiling.height, "BC": tiling.width, "num_warps": WARPS}
    if partial is None:
        rows, programs = tiling.height, tiling.programs
        partial = weight.new_empty(programs, 2, c)
        grid = (programs * triton.cdiv(c, tiling.width),)
        moments[grid](x, shortcut, total, partial, r, c, programs, **tile)
    else:
        rows, programs = PRODUCT_ROWS, len(partial)
    merged = merged_by(programs)
    statistics[(triton.cdiv(c, merged),)](
        partial, weight, found, r, c, programs, epsilon, BR=rows, PP=padded(programs),
        BC=merged, num_warps=WARPS,
    )  # fmt: skip
    activate[(tiling.tiles,)](x if shortcut is None else total, found, bias, y, r, c, **tile)
    return y, total, found


def backward(
    x: Tensor, grad_y: Tensor, grad_total: Tensor | None, bias: Tensor, found: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the backward pass.

    Args:
        x: (B, C, H, W), what was normalised, dense and channels-last.
        grad_y: As x, and grad_total: the same, or None.
        bias: (C,) float32.
        found: Of `forward`.

    Returns:
        The gradients of x, weight and bias.
    """
    c = x.shape[1]
    r = x.numel() // c
    tiling = tiling_of(r, c)
    grad_x, grad_weight, grad_bias = map(torch.empty_like, (x, bias, bias))
    partial, line = bias.new_empty(tiling.programs, 2, c), bias.new_empty(2, c)
    tile = {"BR": tiling.height, "BC": tiling.width, "num_warps": WARPS}
    grid = (tiling.programs * triton.cdiv(c, tiling.width),)
    gradient_sums[grid](x, grad_y, found, bias, partial, r, c, tiling.programs, **tile)
    merged = merged_by(tiling.programs)
    gradient_line[(triton.cdiv(c, merged),)](
        partial, found, line, grad_weight, grad_bias, r, c, tiling.programs,
        PP=padded(tiling.programs), BC=merged, num_warps=WARPS,
    )  # fmt: skip
    gradient_rows[(tiling.tiles,)](
        x, grad_y, grad_total, found, bias, line, grad_x, r, c, **tile
    )  # fmt: skip
    return grad_x, grad_weight, grad_bias
