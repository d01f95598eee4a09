"""Read registers, spilled bytes and shared memory of the Triton programs, for GPUs not present.

python -m support.resources    # in benchmarks/: JSON, one object per target and shape

Triton compiles to machine code for any target, unless TRITON_INTERPRET is set. cuobjdump, which is
in its wheel, reads the rest.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from support.traffic import SHAPES, Shape

if TYPE_CHECKING:
    from triton import JITFunction

TARGETS = (80, 86, 89, 90, 100, 120)
# Also tables of 17 to 32 rows, and the largest tile of each number of locations.
_SHAPES = (
    *SHAPES,
    Shape("352: M 30, rows + columns", 64, 30, 1024, 11, True),
    Shape("352: M 30, pooled", 64, 30, 1024, None),
    Shape("M 64, pooled", 64, 64, 1024, None),
)
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


class Program(NamedTuple):
    """A Triton function as it is launched.

    Args:
        types: Types of the arguments that are neither constants nor i32.
        aligned: Arguments that are multiples of 16.
        tile: What the constants come from.
    """

    name: str
    shape: str
    function: JITFunction[Any]
    types: dict[str, str]
    constants: dict[str, Any]
    aligned: tuple[str, ...]
    options: dict[str, int]
    tile: dict[str, int]


def score(shape: Shape) -> Program:
    from fastselfie.kernels import distractor_score_triton as program
    from fastselfie.kernels.fused_loss_triton import WARPS

    grid = shape.grid or 0
    table_rows = 2 * grid if shape.row_column else grid**2
    tile = program.tile_of(shape.b, shape.m, table_rows, shape.d, item_bytes=2)
    constants = {
        "T": tile.images, "MP": tile.places, "R": tile.rows, "C": tile.width,
        "GRADIENTS": True,
    }  # fmt: skip
    options = {"num_warps": WARPS, "num_stages": tile.stages}
    return Program("score", shape.name, program.score_tile, _TYPES, constants, _ALIGNED, options,
                   tile._asdict())  # fmt: skip


def query(shape: Shape, v: str = "*fp32", h: str = "*bf16") -> Program:
    from fastselfie.kernels import query_score_triton as program

    wide = 4 if "*fp32" in (v, h) else 2
    tile = program.tile_of(shape.m, shape.d, wide)
    constants = {"T": tile.images, "MP": tile.places, "C": tile.width, "GRADIENTS": True}
    types = {"v": v, "dv": v, "h": h, "dh": h, "losses": "*fp32", "rights": "*i32",
             **dict.fromkeys(("scale", "mean", "stored"), "fp32")}  # fmt: skip
    aligned = ("v", "h", "dv", "dh", "losses", "rights", "D",
               "v_stride_b", "v_stride_m", "h_stride_b", "h_stride_m")  # fmt: skip
    options = {"num_warps": tile.warps, "num_stages": tile.stages, "maxnreg": tile.registers}
    return Program("query_score", shape.name, program.score_tile, types, constants, aligned,
                   options, tile._asdict())  # fmt: skip


def scaling() -> Program:
    from fastselfie.kernels import fused_loss_triton as program

    tile, options = {"BLOCK": program.SCALED_BLOCK}, {"num_warps": program.WARPS}
    types = {"x": "*bf16", "factor": "*fp32"}
    return Program("scaling", "bfloat16", program.scale_block, types, tile, tuple(types), options,
                   tile)  # fmt: skip


def patches(dtype: str, name: str, changed: bool = False) -> Program:
    """With `changed`, patches are windows of their cells, lose their colour and have a tone."""
    from fastselfie.kernels import patchify_triton as program

    tile, options = {"BLOCK": program.BLOCK}, {"num_warps": program.WARPS}
    types = {"images": "*u8", "flips": "*i1", "order": "*i64", "scale": "*fp32",
             "offset": "*fp32", "out": dtype}  # fmt: skip
    constants: dict[str, Any] = {**tile, "FACTORS": changed}
    if changed:
        types |= {"corners": "*i64", "grey": "*i1"}
    else:
        constants |= {"corners": None, "grey": None}
    return Program("patchify", name, program.patch, types, constants, tuple(types), options, tile)


def norms(dtype: str, channels: int, summed: bool) -> list[Program]:
    """With `summed` a shortcut is added, and its gradient.

    Args:
        dtype: Of the activations.
        channels: Of 50,176 pixels: 256 images of the smallest maps.
        summed: See above.
    """
    from fastselfie.kernels import norm_relu_triton as program

    tiling = program.tiling_of(50_176, channels)
    activations = ("x", "shortcut", "total", "y", "gradient", "grad_total", "grad_x")
    vectors = ("partial", "weight", "bias", "found", "line", "grad_weight", "grad_bias")
    types = {**dict.fromkeys(activations, dtype), **dict.fromkeys(vectors, "*fp32"),
             "epsilon": "fp32"}  # fmt: skip
    tile: dict[str, Any] = {"BR": tiling.height, "BC": tiling.width}
    merged = {"PP": program.padded(tiling.programs), "BC": tiling.merged}
    absent = {} if summed else dict.fromkeys(("shortcut", "grad_total"))
    kernels = (
        (program.moments, tile), (program.statistics, {"BR": tiling.height, **merged}),
        (program.activate, tile), (program.gradient_sums, tile), (program.gradient_line, merged),
        (program.gradient_rows, tile),
    )  # fmt: skip
    made = []
    for kernel, constants in kernels:
        names = kernel.arg_names
        given = {**constants, **{n: v for n, v in absent.items() if n in names}}
        aligned = tuple(n for n in names if n not in given and n != "epsilon" and (n in types or n == "C"))
        shape = f"{kernel.__name__}, C {channels}, {dtype[1:]}{', shortcut' if summed else ''}"
        made.append(Program("norm_relu", shape, kernel, types, given, aligned,
                            {"num_warps": program.WARPS}, constants))  # fmt: skip
    return made


def compiled(program: Program, target: int) -> dict[str, Any]:
    """Compile a program for sm_TARGET and read its resources. Spilled registers are on a stack."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names, constants = program.function.arg_names, program.constants
    signature = {n: "constexpr" if n in constants else program.types.get(n, "i32") for n in names}
    source = ASTSource(
        program.function,
        signature,
        {(names.index(name),): value for name, value in constants.items()},
        {(names.index(name),): [["tt.divisibility", 16]] for name in program.aligned},
    )
    binary = triton.compile(source, target=GPUTarget("cuda", target, 32), options=program.options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        command = [str(tool), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    return {
        "program": program.name,
        "shape": program.shape,
        "target": f"sm_{target}",
        "tile": program.tile,
        "registers": usage["REG"],
        "spilled_bytes": usage["STACK"] + usage["LOCAL"],
        "shared_bytes": int(binary.metadata.shared),
    }


if __name__ == "__main__":
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise SystemExit("error: TRITON_INTERPRET=1 is set: nothing is compiled then")
    losses = [query(shape) if shape.grid is None else score(shape) for shape in _SHAPES]
    programs = [*losses, scaling(), patches("*bf16", "bfloat16"),
                patches("*fp32", "float32"),
                patches("*bf16", "bfloat16, changed", changed=True)]  # fmt: skip
    json.dump([compiled(each, target) for target in TARGETS for each in programs], sys.stdout)
