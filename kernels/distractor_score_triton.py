"""The Triton kernel of `distractor_score`, and its launch.

Imported only where Triton runs: on a GPU, or with TRITON_INTERPRET=1 on a CPU. distractor_score.py
has the operator, its gradient and its errors; reference.py defines the operation.

A program (one instance of the kernel) processes a tile of T images. M' is M rounded up to a power
of two. The tile has c = T x M' candidates, each a row h_c. Candidates are the last axis:

    pass 1 over D    Q_rc = X H^T, the table of positions against every candidate; u_b . h_c
    in registers     s_jc = scale (u_b . h_c + Q[row of location (b, j), c]), where b is c's image;
                     softmax, loss, correct answers; dS and its column sums a_c;
                     G_rc = dS scattered to the rows of the table, the adjoint of the gather
    pass 2 over D    dH = G^T X + a u,  dX = G H,  du_b = the sum of a_c h_c over b's candidates

Row and column positions are one table X: row vectors, then column vectors. A location reads two of
its rows. So both forms of positions are one kernel, and v = u + position is never stored. h and X
are read twice, the second time from cache if they fit; scores and probabilities stay in registers.
Each program writes a partial dX, and the caller adds them. Without atomics the result has the same
bits every time, on a GPU of any size.

Suffixes of names: i image of the tile, j masked location, k candidate of an image, c candidate of
the tile, r row of X, d column of D.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastselfie.kernels.fused_loss_triton import BEFORE_3_7, WARPS, cross_entropy
from fastselfie.kernels.products_triton import add_product, add_product_for, rounded

# Limit of a thread with 8 warps. Without one, the compiler spills some bytes to reach 128.
REGISTERS = 255

# --- loads and broadcasts -------------------------------------------------------------------------


@triton.jit
def _table(rows, columns, n_rows, n_columns, r, d, D):
    """Load X (R, C) as float32: row vectors, then column vectors, then zeros."""
    inside = (d < D)[None, :]
    at = r[:, None] * D + d[None, :]
    x_rd = tl.load(rows + at, mask=(r < n_rows)[:, None] & inside, other=0.0).to(tl.float32)
    second = ((r >= n_rows) & (r < n_rows + n_columns))[:, None] & inside
    return x_rd + tl.load(columns + (at - n_rows * D), mask=second, other=0.0).to(tl.float32)


@triton.jit
def _chunks(h_c, real_c, u_i, real_i, d, D):
    """Load h (T * MP, C) and u (T, C) without conversion, with zeros outside of the arrays."""
    inside = (d < D)[None, :]
    h_cd = tl.load(h_c[:, None] + d[None, :], mask=real_c[:, None] & inside, other=0.0)
    u_id = tl.load(u_i[:, None] + d[None, :], mask=real_i[:, None] & inside, other=0.0)
    return h_cd, u_id


@triton.jit
def _for_candidates(x_id, T: tl.constexpr, MP: tl.constexpr, C: tl.constexpr):
    """Repeat each image's row for its candidates: (T, C) -> (T * MP, C)."""
    return tl.reshape(tl.broadcast_to(x_id[:, None, :], (T, MP, C)), (T * MP, C))


@triton.jit
def _over_candidates(x_ji, T: tl.constexpr, MP: tl.constexpr):
    """Repeat each image's column for its candidates: (MP, T) -> (MP, T * MP)."""
    return tl.reshape(tl.broadcast_to(x_ji[:, :, None], (MP, T, MP)), (MP, T * MP))


@triton.jit
def _rows_of(location_ji, n_rows, n_columns, T: tl.constexpr, MP: tl.constexpr):
    """Return whether each location is in the grid (MP, T), and its two rows of X (MP, T * MP) each.

    The second row is valid only if there are column vectors.
    """
    across = tl.maximum(n_columns, 1)
    inside_ji = (location_ji >= 0) & (location_ji < n_rows * across)
    location_ji = tl.where(inside_ji, location_ji, 0).to(tl.int32)
    first_jc = _over_candidates(location_ji // across, T, MP)
    second_jc = _over_candidates(n_rows + location_ji % across, T, MP)
    return inside_ji, first_jc, second_jc


# --- the tile -------------------------------------------------------------------------------------


@triton.jit
def _scatter(ds_jc, first_jc, second_jc, j, r, M, n_columns):
    """Return G (R, c): dS of each masked location, added to the rows of X that it reads.

    The loop is sequential, because two locations may read the same row.
    """
    g_rc = tl.zeros((r.shape[0], ds_jc.shape[1]), tl.float32)
    for place in range(M):
        here = (j == place)[:, None]
        ds_c = tl.sum(tl.where(here, ds_jc, 0.0), 0)
        row_c = tl.sum(tl.where(here, first_jc, 0), 0)
        g_rc += tl.where(r[:, None] == row_c[None, :], ds_c[None, :], 0.0)
        if n_columns > 0:
            row_c = tl.sum(tl.where(here, second_jc, 0), 0)
            g_rc += tl.where(r[:, None] == row_c[None, :], ds_c[None, :], 0.0)
    return g_rc


@triton.jit
def _store_gradients(
    a_c, g_rc, h_c, real_c, u_i, real_i, rows, columns, n_rows, n_columns, r, D,
    dh_c, du_i, dtable_r, factor,
    T: tl.constexpr, MP: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Do pass 2 over D: store dh, du and dX, multiplied by factor, at rows dh_c, du_i, dtable_r."""
    for start in range(0, D, C):
        d = start + tl.arange(0, C)
        inside = (d < D)[None, :]
        h_cd, u_id = _chunks(h_c, real_c, u_i, real_i, d, D)
        x_rd = _table(rows, columns, n_rows, n_columns, r, d, D)
        dh_cd = a_c[:, None] * _for_candidates(u_id.to(tl.float32), T, MP, C)
        dh_cd = add_product_for(tl.trans(g_rc), x_rd, dh_cd, h_cd.dtype) * factor
        dh_at = dh_c[:, None] + d[None, :]
        tl.store(dh_at, rounded(dh_cd, h_cd.dtype), mask=real_c[:, None] & inside)
        du_id = tl.sum(tl.reshape(a_c[:, None] * h_cd.to(tl.float32), (T, MP, C)), 1) * factor
        du_at = du_i[:, None] + d[None, :]
        tl.store(du_at, rounded(du_id, u_id.dtype), mask=real_i[:, None] & inside)
        dx_rd = add_product(g_rc, h_cd, tl.zeros((r.shape[0], C), tl.float32)) * factor
        real_r = (r < n_rows + n_columns)[:, None]
        tl.store(dtable_r[:, None] + d[None, :], dx_rd, mask=real_r & inside)


@triton.jit
def score_tile(
    u, h, rows, columns, locations, du, dh, dtables, losses, rights,
    B, M, D, u_stride, h_stride_b, h_stride_m, location_stride_b, location_stride_m,
    n_rows, n_columns, scale, mean, stored,
    T: tl.constexpr, MP: tl.constexpr, R: tl.constexpr, C: tl.constexpr, GRADIENTS: tl.constexpr,
):  # fmt: skip
    """Compute one tile's share of the loss, of the correct answers and of every gradient.

    Reads u (B, D), h (B, M, D) and locations (B, M) by their strides, and the dense tables rows
    (n_rows, D) and columns (n_columns, D); n_columns is 0 if rows is the whole table. Writes dense
    du (B, D), dh (B, M, D), dtables (programs, n_rows + n_columns, D), losses and rights
    (programs,). The loss is multiplied by mean, the gradients by stored.
    """
    tile = tl.program_id(0)
    # 64 bits: B x M x D may exceed 2^31.
    i = tile.to(tl.int64) * T + tl.arange(0, T)
    c = tl.arange(0, T * MP)
    b_c, k_c = tile.to(tl.int64) * T + c // MP, c % MP
    real_i, real_c = i < B, (b_c < B) & (k_c < M)
    j, r = tl.arange(0, MP), tl.arange(0, R)
    h_c = h + b_c * h_stride_b + k_c * h_stride_m
    u_i = u + i * u_stride

    q_rc = tl.zeros((R, T * MP), tl.float32)
    own_c = tl.zeros((T * MP,), tl.float32)
    for start in range(0, D, C):
        d = start + tl.arange(0, C)
        h_cd, u_id = _chunks(h_c, real_c, u_i, real_i, d, D)
        x_rd = _table(rows, columns, n_rows, n_columns, r, d, D)
        own_c += tl.sum(_for_candidates(u_id.to(tl.float32), T, MP, C) * h_cd.to(tl.float32), 1)
        q_rc = add_product(x_rd, tl.trans(h_cd), q_rc)

    real_ji = (j < M)[:, None] & real_i[None, :]
    at_ji = i[None, :] * location_stride_b + j[:, None] * location_stride_m
    location_ji = tl.load(locations + at_ji, mask=real_ji, other=0)
    inside_ji, first_jc, second_jc = _rows_of(location_ji, n_rows, n_columns, T, MP)
    s_jc = own_c[None, :] + tl.gather(q_rc, first_jc, 0)
    if n_columns > 0:
        s_jc += tl.gather(q_rc, second_jc, 0)
    # A location outside of the grid makes the loss NaN, not a wrong number.
    s_jik = tl.reshape(s_jc * scale, (MP, T, MP))
    s_jik = tl.where(inside_ji[:, :, None], s_jik, float("nan"))
    k = tl.arange(0, MP)[None, None, :]
    own = j[:, None, None]
    loss_ji, right_ji, ds_jik = cross_entropy(s_jik, k < M, k == own, k < own, 2)
    tl.store(losses + tile, tl.sum(tl.where(real_ji, loss_ji, 0.0)) * mean)
    tl.store(rights + tile, tl.sum((right_ji & real_ji).to(tl.int32)))

    if GRADIENTS:
        ds_jik = tl.where(real_ji[:, :, None] & (k < M), ds_jik, 0.0)
        ds_jc = tl.reshape(ds_jik, (MP, T * MP))
        a_c = tl.sum(ds_jc, 0)
        g_rc = _scatter(ds_jc, first_jc, second_jc, j, r, M, n_columns)
        dh_c = dh + (b_c * M + k_c) * D
        dtable_r = dtables + (tile.to(tl.int64) * (n_rows + n_columns) + r) * D
        _store_gradients(
            a_c, g_rc, h_c, real_c, u_i, real_i, rows, columns, n_rows, n_columns, r, D,
            dh_c, du + i * D, dtable_r, scale * stored, T, MP, C,
        )  # fmt: skip


# --- launch ---------------------------------------------------------------------------------------


class Tile(NamedTuple):
    """Sizes that the kernel is compiled for.

    Attributes:
        images: T.
        places: M', masked locations rounded up to a power of two.
        rows: R, rows of the table, rounded up.
        width: C, the columns of D in a chunk.
        stages: Chunks of h in shared memory: the one in use and those being loaded.
    """

    images: int
    places: int
    rows: int
    width: int
    stages: int


def tile_of(images: int, masked: int, table_rows: int, width: int, item_bytes: int) -> Tile:
    """Choose as many images as fit in registers, so that the table is read the fewest times.

    With 8 warps a thread holds 32 float32 of an array of 8,192 entries. Q (R x T M') and the scores
    (M' x T M') are the largest arrays that are alive during a pass. float32 items need twice as
    many registers. benchmarks/triton_sweep.py finds what spills.

    Args: B, M, the rows of both tables, D, and the bytes of an item of h.
    """
    places = triton.next_power_of_2(masked)
    rows = max(16, triton.next_power_of_2(table_rows))  # 16: the minimum for tensor cores
    entries = 8192 if item_bytes == 2 else 4096
    # X and h together would be more shared memory than consumer GPUs have, 99 KiB.
    if rows > 16 or BEFORE_3_7:
        entries //= 2
    candidates = max(places, 16, min(entries // 32, entries // max(rows, places)))
    # Not more images than the batch has, or than u has registers for.
    images = min(64, triton.next_power_of_2(images))
    candidates = min(candidates, max(16, places * images))
    small = rows < 64  # above, shared memory is the limit again
    # A wide chunk would spill.
    narrow = candidates == 256 or (rows == 32 and (BEFORE_3_7 or item_bytes == 4))
    chunk = 32 if small and not narrow and width > 16 else 16
    # With 32 places, float32 u and half-precision h, a third chunk would spill in such a tile.
    stages = 3 if small and (candidates, places) != (256, 32) else 2
    return Tile(candidates // places, places, rows, chunk, stages)


def score(
    u: Tensor, h: Tensor, rows: Tensor, columns: Tensor | None, locations: Tensor, scale: float,
    stored: float, gradients: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Launch the kernel on arguments that `distractor_score` has checked.

    Args:
        u: (B, D), and h: (B, M, D), both dense in their last dimension.
        rows: (G, D), or the whole table (N, D); columns: (G', D), or None; both dense.
        locations: (B, M).
        scale: Factor of the scores.
        stored: Factor of the gradients.
        gradients: Whether to compute the gradients.

    Returns:
        The loss (), the correct answers (), and du, dh and dtables (n_rows + n_columns, D) float32:
        the gradients of the loss summed over locations and images, or empty.
    """
    (b, m, d), n_rows = h.shape, len(rows)
    n_columns = 0 if columns is None else len(columns)
    tile = tile_of(b, m, n_rows + n_columns, d, h.element_size())
    programs = triton.cdiv(b, tile.images)
    losses = h.new_empty(programs, dtype=torch.float32)
    rights = h.new_empty(programs, dtype=torch.int32)
    kept = (u.shape, h.shape, (programs, n_rows + n_columns, d)) if gradients else ((0,),) * 3
    du, dh, dtables = (x.new_empty(shape) for x, shape in zip((u, h, losses), kept, strict=True))
    score_tile[(programs,)](
        u, h, rows, rows if columns is None else columns, locations,
        du, dh, dtables, losses, rights,
        b, m, d, u.stride(0), h.stride(0), h.stride(1), locations.stride(0), locations.stride(1),
        n_rows, n_columns, scale, 1.0 / (b * m), stored,
        T=tile.images, MP=tile.places, R=tile.rows, C=tile.width, GRADIENTS=gradients,
        num_warps=WARPS, num_stages=tile.stages, maxnreg=REGISTERS,
    )  # fmt: skip
    return losses.sum(), rights.sum(), du, dh, dtables.sum(0) if gradients else dtables
