"""Compile every tile that `auto` chooses, of every fused kernel, for all GPUs that it takes.

python -m support.sweep [PROGRAM...]    # in benchmarks/: one JSON object a line

The rows are those of support/resources.py. A tile depends on M rounded up to a power of two, on the
rows of the table rounded up, and on dtypes; the batch is large.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from itertools import product

from fastselfie.kernels.distractor_score import AUTO_TABLE_ROWS
from fastselfie.kernels.fused_loss import MAX_MASKED
from fastselfie.kernels.impl import lacks_products
from support.resources import (
    TARGETS,
    Program,
    compiled,
    norms,
    patches,
    pointwise,
    pools,
    query,
    scaling,
    score,
)
from support.traffic import Shape

_DTYPES = ("*fp32", "*bf16", "*fp16")
# Of u or v, and of h. A layer norm under autocast makes float32, a convolution half precision.
_MIXES = (
    ("*fp32", "*fp32"), ("*fp32", "*bf16"), ("*fp32", "*fp16"), ("*bf16", "*bf16"),
    ("*fp16", "*fp16"),
)  # fmt: skip
_MASKED = [2**n for n in range(MAX_MASKED.bit_length())]
_GRIDS = (4, 5, 8)  # learned positions: tables of 16, 25 and 64 rows
# K and N of 1x1 convolutions: the smallest tile; tiles that are not full; those of in224.
_PRODUCTS = ((16, 16), (48, 80), (64, 64), (256, 128), (256, 1024))
_CHANNELS = (33, 64, 1024)  # not aligned; a tile wide; the widest tile of partial results


def accepted() -> Iterator[Program]:
    """Yield the programs; the shape of each names its sizes and dtypes."""
    assert max(_GRIDS) ** 2 == AUTO_TABLE_ROWS
    for (u, h), grid, m in product(_MIXES, _GRIDS, _MASKED[1:]):  # auto takes no M of 1
        name = f"M {m}, {grid**2} rows, {u[1:]} and {h[1:]}"
        yield score(Shape(name, 4096, m, 1024, grid), u, h)
    for (v, h), m in product(_MIXES, _MASKED):
        yield query(Shape(f"M {m}, {v[1:]} and {h[1:]}", 4096, m, 1024, None), v, h)
    for dtype in _DTYPES:
        yield scaling(dtype, dtype[1:])
        yield from (patches(dtype, f"{dtype[1:]}{', changed' * c}", c) for c in (False, True))
        for channels, summed in product(_CHANNELS, (False, True)):
            yield from norms(dtype, channels, summed)
        for channels in _CHANNELS:
            yield from pools(dtype, channels)
    for dtype, (inputs, outputs), summed in product(_DTYPES[1:], _PRODUCTS, (False, True)):
        yield pointwise(dtype, inputs, outputs, summed)


if __name__ == "__main__":
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise SystemExit("error: TRITON_INTERPRET=1 is set: nothing is compiled then")
    import triton

    targets = [target for target in TARGETS if not lacks_products(target // 10)]
    print(json.dumps({"triton": triton.__version__}))
    for program in accepted():
        if program.name in sys.argv[1:] or len(sys.argv) == 1:
            for target in targets:
                print(json.dumps(compiled(program, target)), flush=True)
