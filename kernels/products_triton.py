"""Matrix products on tensor cores that keep float32 operands accurate, for Triton kernels."""

from __future__ import annotations

import os

import triton
import triton.language as tl

_INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def rounded(x, to: tl.constexpr):
    """Round float32 `x` to the type `to`, to nearest even."""
    if _INTERPRETED and to == tl.bfloat16:  # Triton 3.9's interpreter truncates instead
        bits = x.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000
        x = bits.to(tl.float32, bitcast=True)
    return x.to(to)


@triton.jit
def add_plain_product(x, y, sum_xy):
    """Return sum_xy + x y for `x` and `y` of one type, summed in float32."""
    if _INTERPRETED:  # it would multiply the bits of bfloat16 as integers
        x, y = x.to(tl.float32), y.to(tl.float32)
    return tl.dot(x, y, sum_xy, input_precision="tf32x3")


@triton.jit
def add_product(x, y, sum_xy):
    """Return sum_xy + x y for float32 `x` and `y` as loaded, with all bits of `x`.

    A float32 is the sum of three bfloat16 (3 x 8 bits), or of three float16 to 2^-25. So this is
    three tensor-core products, the smallest first, summed in float32.
    """
    if y.dtype == tl.float32:
        sum_xy = add_plain_product(x, y, sum_xy)
    else:
        high = rounded(x, y.dtype)
        rest = x - high.to(tl.float32)
        middle = rounded(rest, y.dtype)
        low = rounded(rest - middle.to(tl.float32), y.dtype)
        sum_xy = add_plain_product(low, y, sum_xy)
        sum_xy = add_plain_product(middle, y, sum_xy)
        sum_xy = add_plain_product(high, y, sum_xy)
    return sum_xy


@triton.jit
def add_product_for(x, y, sum_xy, half: tl.constexpr):
    """Return sum_xy + x y for float32 `x` and `y` if the sum is later rounded to type `half`.

    Each operand is split into two values of type `half`. The product of the small ones is omitted:
    the error is 2^-16, and bfloat16 rounds to 2^-8.
    """
    if half == tl.float32:
        sum_xy = add_plain_product(x, y, sum_xy)
    else:
        x_high, y_high = rounded(x, half), rounded(y, half)
        sum_xy = add_plain_product(rounded(x - x_high.to(tl.float32), half), y_high, sum_xy)
        sum_xy = add_plain_product(x_high, rounded(y - y_high.to(tl.float32), half), sum_xy)
        sum_xy = add_plain_product(x_high, y_high, sum_xy)
    return sum_xy
