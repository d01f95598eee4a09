"""How the programs of a Triton kernel share a matrix (R, C), for sums over each channel.

A channels-last tensor is a matrix of R pixels by C channels. A tile is BR rows of BC neighbouring
channels. P programs share the rows of a block of channels: program p reads the tiles p, p + P,
p + 2 P, ... and writes a partial result. Programs that merge the partial results of some channels
follow. Without atomics a sum has the same bits every time, on a GPU of any size.

Suffixes of names: r row of a tile, c channel, p program.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

WARPS = 8
TILE = 4096  # entries that a program loads at a time: 16 a thread
UNALIGNED_TILE = 2048  # if C is no multiple of 16: narrow loads take registers for addresses
PROGRAMS = 512  # that share a tensor: about 4 for each multiprocessor of a large GPU
MERGED = 8192  # partial results that a program merges: 32 a thread
PRODUCT_ROWS = 64  # of a tile of a matrix that pointwise_triton.py computes

# --- in a kernel ----------------------------------------------------------------------------------


@triton.jit
def channels_of(C, BC: tl.constexpr):
    """Return this program's number among those of its channels, and its channels (BC,)."""
    blocks = tl.cdiv(C, BC)
    pid = tl.program_id(0)  # neighbouring programs read neighbouring channels
    return pid // blocks, pid % blocks * BC + tl.arange(0, BC)


@triton.jit
def tile_at(tile, c, R, C, BR: tl.constexpr):
    """Return the offsets (BR, BC) of a tile's entries, and which of them are in the matrix."""
    row = tile * BR + tl.arange(0, BR).to(tl.int64)  # 64 bits: R x C may exceed 2^31
    return row[:, None] * C + c[None, :], (row < R)[:, None] & (c < C)[None, :]


@triton.jit
def rows_read(p, R, P, BR: tl.constexpr):
    """Return the number of rows that each program reads: its tiles are p, p + P, p + 2 P, ..."""
    tiles = tl.cdiv(R, BR)
    missing = tl.where((tiles - 1) % P == p, tiles * BR - R, 0)  # of the last tile
    return tl.cdiv(tiles - p, P) * BR - missing


@triton.jit
def vector(array, index: tl.constexpr, c, C):
    """Load row `index` of a (rows, C) array, as (1, BC)."""
    return tl.load(array + index * C + c, mask=c < C, other=0.0)[None, :]


# --- at a launch ----------------------------------------------------------------------------------


class Tiling(NamedTuple):
    """How programs share a matrix (R, C).

    Attributes:
        height: Rows of a tile.
        width: Channels of a tile.
        programs: P, which share the rows of a block of channels.
        tiles: Of the whole matrix.
    """

    height: int
    width: int
    programs: int
    tiles: int


def tiling_of(rows: int, channels: int) -> Tiling:
    """Choose tiles whose rows are at most 64 channels: 128 bytes in half precision.

    They are half as high if `channels` is no multiple of 16.
    """
    width = min(triton.next_power_of_2(channels), 64)
    entries = TILE if channels % 16 == 0 else UNALIGNED_TILE
    height, blocks = entries // width, triton.cdiv(channels, width)
    tiles = triton.cdiv(rows, height)
    programs = max(1, min(PROGRAMS // blocks, tiles))
    return Tiling(height, width, programs, tiles * blocks)


def merged_by(programs: int) -> int:
    """Return the number of channels whose partial results, `programs` each, a program merges."""
    return min(64, MERGED // padded(programs))


def padded(programs: int) -> int:
    """Return the size of the array that holds a partial result of each program."""
    size: int = triton.next_power_of_2(programs)
    return size
