"""The Triton kernel of `query_score`, and its launch.

Imported only where Triton runs: on a GPU, or with TRITON_INTERPRET=1 on a CPU. query_score.py has
the operator, its gradient and its errors; reference.py defines the operation.

A program (one instance of the kernel) processes a tile of T images. M' is M rounded up to a power
of two. The tile has c = T x M' candidates h_c and as many queries v_r:

    pass 1 over D    S = scale V H^T, of every query against every candidate of the tile
    in registers     softmax over the candidates of the query's own image; loss, correct answers, dS
    pass 2 over D    dV = dS H,  dH = dS^T V

V and H are read twice, the second time from cache. Scores and probabilities stay in registers.
With M' < 16 several images fill the tile of 16 that tensor cores need; the scores between two
images are computed and not used. Without atomics the result has the same bits every time.

Suffixes of names: i image of the tile, r masked location of the tile, c candidate of the tile,
d column of D.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastselfie.kernels.fused_loss_triton import BEFORE_3_7, cross_entropy
from fastselfie.kernels.products_triton import add_plain_product, add_product, rounded

# --- the tile -------------------------------------------------------------------------------------


@triton.jit
def _chunk(x_r, real_r, d, D):
    """Load x (T * MP, C) without conversion, with zeros outside of the array."""
    return tl.load(x_r[:, None] + d[None, :], mask=real_r[:, None] & (d < D)[None, :], other=0.0)


@triton.jit
def _add_scores(v_rd, h_cd, s_rc):
    """Return s + V H^T: one product for one type, otherwise with all bits of the wider one."""
    if v_rd.dtype == h_cd.dtype:
        s_rc = add_plain_product(v_rd, tl.trans(h_cd), s_rc)
    elif h_cd.dtype == tl.float32:
        s_rc = add_plain_product(v_rd.to(tl.float32), tl.trans(h_cd), s_rc)
    else:
        s_rc = add_product(v_rd.to(tl.float32), tl.trans(h_cd), s_rc)
    return s_rc


@triton.jit
def score_tile(
    v, h, dv, dh, losses, rights,
    B, M, D, v_stride_b, v_stride_m, h_stride_b, h_stride_m, scale, mean, stored,
    T: tl.constexpr, MP: tl.constexpr, C: tl.constexpr, GRADIENTS: tl.constexpr,
):  # fmt: skip
    """Compute one tile's share of the loss, of the correct answers and of both gradients.

    Reads v and h (B, M, D) by their strides. Writes dense dv and dh (B, M, D), losses and rights
    (programs,). The loss is multiplied by mean, the gradients by stored.
    """
    tile = tl.program_id(0)
    r = tl.arange(0, T * MP)
    # 64 bits: B x M x D may exceed 2^31.
    b_r, j_r = tile.to(tl.int64) * T + r // MP, r % MP
    real_r = (b_r < B) & (j_r < M)
    v_r = v + b_r * v_stride_b + j_r * v_stride_m
    h_r = h + b_r * h_stride_b + j_r * h_stride_m

    s_rc = tl.zeros((T * MP, T * MP), tl.float32)
    for start in range(0, D, C):
        d = start + tl.arange(0, C)
        s_rc = _add_scores(_chunk(v_r, real_r, d, D), _chunk(h_r, real_r, d, D), s_rc)

    candidate_rc = (r[:, None] // MP == r[None, :] // MP) & (j_r < M)[None, :]
    right_rc, before_rc = r[:, None] == r[None, :], r[None, :] < r[:, None]
    loss_r, correct_r, ds_rc = cross_entropy(s_rc * scale, candidate_rc, right_rc, before_rc, 1)
    tl.store(losses + tile, tl.sum(tl.where(real_r, loss_r, 0.0)) * mean)
    tl.store(rights + tile, tl.sum((correct_r & real_r).to(tl.int32)))

    if GRADIENTS:
        ds_rc = tl.where(real_r[:, None] & candidate_rc, ds_rc, 0.0) * (scale * stored)
        dense_r = (b_r * M + j_r) * D
        for start in range(0, D, C):
            d = start + tl.arange(0, C)
            v_rd, h_rd = _chunk(v_r, real_r, d, D), _chunk(h_r, real_r, d, D)
            at, inside = dense_r[:, None] + d[None, :], real_r[:, None] & (d < D)[None, :]
            zeros = tl.zeros((T * MP, C), tl.float32)
            dv_rd = rounded(add_product(ds_rc, h_rd, zeros), v_rd.dtype)
            tl.store(dv + at, dv_rd, mask=inside)
            dh_rd = rounded(add_product(tl.trans(ds_rc), v_rd, zeros), h_rd.dtype)
            tl.store(dh + at, dh_rd, mask=inside)


# --- launch ---------------------------------------------------------------------------------------


class Tile(NamedTuple):
    """Sizes that the kernel is compiled for.

    Attributes:
        images: T.
        places: M', masked locations rounded up to a power of two.
        width: C, the columns of D in a chunk.
        warps: Of a program.
        stages: Chunks in shared memory: the one in use and those being loaded.
        registers: Limit of a thread. Without one, the compiler spills some bytes to reach a lower
            number for some types and GPUs.
    """

    images: int
    places: int
    width: int
    warps: int
    stages: int
    registers: int


def tile_of(masked: int, width: int, item_bytes: int) -> Tile:
    """Choose the smallest tile that tensor cores take, so that many programs run at once.

    Args: M, D, and the bytes of an item of v or h, whichever is wider.
    """
    places = triton.next_power_of_2(masked)
    rows = max(16, places)
    entries = 1024 if item_bytes == 2 else 512
    chunk = max(16, min(entries // rows, triton.next_power_of_2(width)))
    if rows == 64:  # with a fourth chunk it would want more shared memory than 99 KiB
        return Tile(1, places, chunk, warps=8, stages=3, registers=255)
    # With 128, older Tritons spill.
    registers = 160 if BEFORE_3_7 and rows == 32 and item_bytes == 4 else 128
    return Tile(rows // places, places, chunk, warps=4, stages=4, registers=registers)


def score(
    v: Tensor, h: Tensor, scale: float, stored: float, gradients: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Launch the kernel on arguments that `query_score` has checked.

    Args:
        v: (B, M, D), and h: (B, M, D), both dense in their last dimension.
        scale: Factor of the scores.
        stored: Factor of the gradients.
        gradients: Whether to compute the gradients.

    Returns:
        The loss (), the correct answers (), and dv and dh: the gradients of the loss summed over
        locations and images, or empty.
    """
    b, m, d = h.shape
    tile = tile_of(m, d, max(v.element_size(), h.element_size()))
    programs = triton.cdiv(b, tile.images)
    losses = h.new_empty(programs, dtype=torch.float32)
    rights = h.new_empty(programs, dtype=torch.int32)
    dv, dh = (x.new_empty(x.shape if gradients else (0,)) for x in (v, h))
    score_tile[(programs,)](
        v, h, dv, dh, losses, rights,
        b, m, d, v.stride(0), v.stride(1), h.stride(0), h.stride(1), scale, 1.0 / (b * m), stored,
        T=tile.images, MP=tile.places, C=tile.width, GRADIENTS=gradients,
        num_warps=tile.warps, num_stages=tile.stages, maxnreg=tile.registers,
    )  # fmt: skip
    return losses.sum(), rights.sum(), dv, dh
