"""The Triton kernel of `pointwise_norm_relu` (pointwise.py), and its launch.

Imported only where Triton runs: on a GPU, or with TRITON_INTERPRET=1 on a CPU. pointwise.py has the
operator and its gradient; reference.py defines the operation.

A channels-last tensor is a matrix of R pixels by its channels, so a 1x1 convolution is the product
of x (R, K) and the transpose of the weight (N, K). A program computes tiles of BR pixels by BC
output channels. Before it writes a tile, it adds the shortcut and takes the moments of each column
of what it writes. So the norm behind the convolution need not read the tensor for them:

    x, weight, shortcut are read, out is written      once each; moments are (P, 2, N) only

P programs share the tiles of a block of channels, as in matrix_tiles_triton.py, and each writes
partial moments of the tiles that it computed. `statistics` in norm_relu_triton.py merges them.
Programs of neighbouring blocks of channels read the same rows of x at about the same time, the
first from memory and the others from the L2 cache.

Suffixes of names: r row of a tile, c output channel, k input channel, p program.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastselfie.kernels.matrix_tiles_triton import (
    PRODUCT_ROWS,
    PROGRAMS,
    WARPS,
    channels_of,
    tile_at,
)
from fastselfie.kernels.products_triton import add_plain_product, rounded

STAGES = 3  # of the pipeline that loads the operands of a product
# Of a thread. Without a limit, Triton before 3.7 spills some bytes to reach 128. Later ones reach
# 128 on some GPUs without a spill, so that two programs fit on a multiprocessor.
_OLDER = tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 7)
REGISTERS = 255 if _OLDER else None
_WIDTH = 128  # output channels of a tile, at most
_DEPTH = 64  # input channels of a product, at most
_LEAST = 16  # sides of a product on tensor cores


@triton.jit
def multiply(
    x, weight, shortcut, out, partial, R, K, N, P, BR: tl.constexpr, BC: tl.constexpr,
    BK: tl.constexpr,
):  # fmt: skip
    """Write out = x W^T + shortcut, and partial (P, 2, N) as `moments` of norm_relu_triton.py."""
    p, c = channels_of(N, BC)
    mean_c, squares_c = tl.zeros((BC,), tl.float32), tl.zeros((BC,), tl.float32)
    seen = 0.0
    for tile in range(p, tl.cdiv(R, BR), P):
        product_rc = tl.zeros((BR, BC), tl.float32)
        for start in range(0, K, BK):
            k = start + tl.arange(0, BK)
            at, real = tile_at(tile, k, R, K, BR)
            x_rk = tl.load(x + at, mask=real, other=0.0)
            real = (k < K)[:, None] & (c < N)[None, :]
            weight_kc = tl.load(weight + k[:, None] + c[None, :] * K, mask=real, other=0.0)
            product_rc = add_plain_product(x_rk, weight_kc, product_rc)
        at, real = tile_at(tile, c, R, N, BR)
        value = rounded(product_rc, out.dtype.element_ty)
        if shortcut is not None:
            added = value.to(tl.float32) + tl.load(shortcut + at, mask=real).to(tl.float32)
            value = rounded(added, out.dtype.element_ty)
        tl.store(out + at, value, mask=real)
        # Merge the tile's moments with those of the tiles before (Chan, Golub and LeVeque, 1979).
        rows = tl.minimum(R - tile * BR, BR).to(tl.float32)
        exact_rc = tl.where(real, value.to(tl.float32), 0.0)
        tile_mean_c = tl.sum(exact_rc, 0) / rows
        apart_rc = tl.where(real, exact_rc - tile_mean_c[None, :], 0.0)
        share = rows / (seen + rows)
        distance_c = tile_mean_c - mean_c
        mean_c += distance_c * share
        squares_c += tl.sum(apart_rc * apart_rc, 0) + distance_c * distance_c * (seen * share)
        seen += rows
    tl.store(partial + 2 * p * N + c, mean_c, mask=c < N)
    tl.store(partial + (2 * p + 1) * N + c, squares_c, mask=c < N)


def tile_of(inputs: int, outputs: int) -> dict[str, int]:
    """Return the sizes of a tile for K = `inputs` and N = `outputs`."""
    width = min(_WIDTH, max(_LEAST, triton.next_power_of_2(outputs)))
    depth = min(_DEPTH, max(_LEAST, triton.next_power_of_2(inputs)))
    return {"BR": PRODUCT_ROWS, "BC": width, "BK": depth}


def programs_of(rows: int, inputs: int, outputs: int) -> int:
    """Return P, the number of programs that share the tiles of a block of output channels."""
    blocks = triton.cdiv(outputs, tile_of(inputs, outputs)["BC"])
    programs: int = min(max(1, PROGRAMS // blocks), triton.cdiv(rows, PRODUCT_ROWS))
    return programs


def product(x: Tensor, weight: Tensor, shortcut: Tensor | None) -> tuple[Tensor, Tensor]:
    """Launch the product.

    Args:
        x: (B, K, H, W), dense and channels-last.
        weight: (N, K), dense, in x's dtype.
        shortcut: (B, N, H, W), as x, or None.

    Returns:
        The sum (B, N, H, W), as x; and the partial moments of its channels, (P, 2, N) float32: the
        mean of a program's rows, and their squared distances from it.
    """
    n, k = weight.shape
    r = x.numel() // k
    programs, tile = programs_of(r, k, n), tile_of(k, n)
    out = torch.empty(
        (x.shape[0], n, *x.shape[2:]), dtype=x.dtype, device=x.device,
        memory_format=torch.channels_last,
    )  # fmt: skip
    partial = torch.empty(programs, 2, n, dtype=torch.float32, device=x.device)
    grid = (programs * triton.cdiv(n, tile["BC"]),)
    multiply[grid](
        x, weight, shortcut, out, partial, r, k, n, programs, **tile,
        num_warps=WARPS, num_stages=STAGES, maxnreg=REGISTERS,
    )  # fmt: skip
    return out, partial
