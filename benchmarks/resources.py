"""Registers, spills and shared memory of the Triton programs, compiled for GPUs that are not here.

    python benchmarks/resources.py    JSON, a row a target and shape; without TRITON_INTERPRET

Triton compiles to machine code for any target; cuobjdump, which its wheel ships, reads the rest.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from traffic import SHAPES, Shape

TARGETS = (80, 90, 100)
_WIDE = ("u", "h", "du", "dh")
_ALIGNED = (
    *_WIDE, "rows", "columns", "locations", "dtables", "losses", "rights",
    "D", "u_stride", "h_stride_b", "h_stride_m",
)  # fmt: skip
_TYPES = {
    **dict.fromkeys(_WIDE, "*bf16"),
    **dict.fromkeys(("rows", "columns", "dtables", "losses"), "*fp32"),
    **dict.fromkeys(("scale", "mean", "stored"), "fp32"),
    "locations": "*i64",
    "rights": "*i32",
}


def compiled(shape: Shape, target: int) -> dict[str, Any]:
    """What one program of `shape` takes on sm_TARGET. A stack holds what registers could not."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from fastselfie.kernels import distractor_score_triton as program

    table_rows = 2 * shape.grid if shape.row_column else shape.grid**2
    tile = program.tile_of(shape.b, shape.m, table_rows, shape.d, item_bytes=2)
    constants = {
        "T": tile.images, "MP": tile.places, "R": tile.rows, "C": tile.width,
        "GRADIENTS": True,
    }  # fmt: skip
    names = program.score_tile.arg_names
    signature = {n: "constexpr" if n in constants else _TYPES.get(n, "i32") for n in names}
    source = ASTSource(
        program.score_tile,
        signature,
        {(names.index(name),): value for name, value in constants.items()},
        {(names.index(name),): [["tt.divisibility", 16]] for name in _ALIGNED},
    )
    options = {"num_warps": program.WARPS, "num_stages": tile.stages}
    binary = triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        command = [str(tool), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    return {
        "shape": shape.name,
        "target": f"sm_{target}",
        "tile": tile._asdict(),
        "registers": usage["REG"],
        "spilled_bytes": usage["STACK"] + usage["LOCAL"],
        "shared_bytes": int(binary.metadata.shared),
    }


if __name__ == "__main__":
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise SystemExit("error: TRITON_INTERPRET=1 is set: nothing is compiled then")
    json.dump([compiled(shape, target) for target in TARGETS for shape in SHAPES], sys.stdout)
