"""Triton code that the fused losses share: the cross-entropy, and scaling in place.

Imported only where Triton runs; see distractor_score_triton.py.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastselfie.kernels.products_triton import rounded

WARPS = 8
SCALED_BLOCK = 4096  # values that a program scales
# Older Tritons take more registers for the same tile.
BEFORE_3_7 = tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 7)


@triton.jit
def cross_entropy(s, candidate, right, before, AXIS: tl.constexpr):
    """Return the loss, whether the right candidate is chosen, and d loss / d scores.

    Args: the scores; which entries are candidates, the right one, and in front of it (they
    broadcast to the scores); the axis of the candidates, which the first two results lack.
    """
    s = tl.where(candidate, s, float("-inf"))  # each location has a candidate
    top = tl.max(s, AXIS)
    e = tl.exp(s - tl.expand_dims(top, AXIS))
    total = tl.sum(e, AXIS)
    target = tl.sum(tl.where(right, s, 0.0), AXIS)
    loss = tl.log(total) - (target - top)
    # argmax takes the first maximum. Comparisons with NaN are false, so NaN is never correct.
    wide = tl.expand_dims(target, AXIS)
    below = tl.where(before, s < wide, s <= wide)
    correct = tl.sum(tl.where(candidate, tl.where(below, 0, 1), 0), AXIS) == 0
    return loss, correct, e / tl.expand_dims(total, AXIS) - tl.where(right, 1.0, 0.0)


@triton.jit
def scale_block(x, factor, n, BLOCK: tl.constexpr):
    """Multiply x (n,) by factor (1,) in float32, in place. A factor of 1 writes nothing."""
    by = tl.load(factor)
    if by != 1.0:
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        value = tl.load(x + at, mask=at < n)
        tl.store(x + at, rounded(value.to(tl.float32) * by, value.dtype), mask=at < n)


def scale_(x: Tensor, factor: Tensor) -> None:
    """Multiply dense `x` by `factor` () in place."""
    scale_block[(triton.cdiv(x.numel(), SCALED_BLOCK),)](
        x, factor, x.numel(), BLOCK=SCALED_BLOCK, num_warps=WARPS
    )
