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
from collections.abc import Mapping
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
_ALIGNED = (
    "u", "h", "du", "dh", "rows", "columns", "locations", "dtables", "losses", "rights",
    "D", "u_stride", "h_stride_b", "h_stride_m",
)  # fmt: skip
_BYTES = {"*fp32": 4, "*bf16": 2, "*fp16": 2}


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
    options: Mapping[str, int | None]
    tile: dict[str, int]


def score(shape: Shape, u: str = "*bf16", h: str = "*bf16", positions: str = "*fp32") -> Program:
    from fastselfie.kernels import distractor_score_triton as program
    from fastselfie.kernels.fused_loss_triton import WARPS

    grid = shape.grid or 0
    table_rows = 2 * grid if shape.row_column else grid**2
    tile = program.tile_of(shape.b, shape.m, table_rows, shape.d, _BYTES[h])
    constants = {
        "T": tile.images, "MP": tile.places, "R": tile.rows, "C": tile.width,
        "GRADIENTS": True,
    }  # fmt: skip
    types = {
        "u": u, "du": u, "h": h, "dh": h, "rows": positions, "columns": positions,
        "locations": "*i64", "rights": "*i32", "dtables": "*fp32", "losses": "*fp32",
        **dict.fromkeys(("scale", "mean", "stored"), "fp32"),
    }  # fmt: skip
    options = {"num_warps": WARPS, "num_stages": tile.stages, "maxnreg": program.REGISTERS}
    return Program("score", shape.name, program.score_tile, types, constants, _ALIGNED, options,
                   tile._asdict())  # fmt: skip


def query(shape: Shape, v: str = "*fp32", h: str = "*bf16") -> Program:
    from fastselfie.kernels import query_score_triton as program

    tile = program.tile_of(shape.m, shape.d, max(_BYTES[v], _BYTES[h]))
    constants = {"T": tile.images, "MP": tile.places, "C": tile.width, "GRADIENTS": True}
    types = {"v": v, "dv": v, "h": h, "dh": h, "losses": "*fp32", "rights": "*i32",
             **dict.fromkeys(("scale", "mean", "stored"), "fp32")}  # fmt: skip
    aligned = ("v", "h", "dv", "dh", "losses", "rights", "D",
               "v_stride_b", "v_stride_m", "h_stride_b", "h_stride_m")  # fmt: skip
    options = {"num_warps": tile.warps, "num_stages": tile.stages, "maxnreg": tile.registers}
    return Program("query_score", shape.name, program.score_tile, types, constants, aligned,
                   options, tile._asdict())  # fmt: skip


def scaling(dtype: str = "*bf16", name: str = "bfloat16") -> Program:
    from fastselfie.kernels import fused_loss_triton as program

    tile, options = {"BLOCK": program.SCALED_BLOCK}, {"num_warps": program.WARPS}
    types = {"x": dtype, "factor": "*fp32"}
    return Program("scaling", name, program.scale_block, types, tile, tuple(types), options,
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
    """Return the kernels of `norm_relu` for 50,176 pixels, 256 images of the smallest maps.

    Args:
        dtype: Of the activations.
        channels: C.
        summed: Whether a shortcut is added.
    """
    from fastselfie.kernels import norm_relu_triton as program
    from fastselfie.kernels.matrix_tiles_triton import WARPS, merged_by, padded, tiling_of

    tiling = tiling_of(50_176, channels)
    activations = ("x", "shortcut", "total", "y", "gradient", "grad_total", "grad_x")
    vectors = ("partial", "weight", "bias", "found", "line", "grad_weight", "grad_bias")
    types = {**dict.fromkeys(activations, dtype), **dict.fromkeys(vectors, "*fp32")}
    aligned = {*types, "C"} if channels % 16 == 0 else set(types)
    tile: dict[str, Any] = {"BR": tiling.height, "BC": tiling.width}
    merged: dict[str, Any] = {"PP": padded(tiling.programs), "BC": merged_by(tiling.programs)}
    if not summed:
        tile |= dict.fromkeys(("shortcut", "grad_total"))
    made = []
    for kernel, sizes in (
        (program.moments, tile), (program.statistics, {"BR": tiling.height, **merged}),
        (program.activate, tile), (program.gradient_sums, tile), (program.gradient_line, merged),
        (program.gradient_rows, tile),
    ):  # fmt: skip
        constants = {n: v for n, v in sizes.items() if n in kernel.arg_names}
        names = tuple(n for n in kernel.arg_names if n in aligned and n not in constants)
        shape = f"{kernel.__name__}, C {channels}, {dtype[1:]}{', summed' if summed else ''}"
        given = {n: v for n, v in constants.items() if v is not None}
        made.append(
            Program("norm_relu", shape, kernel, {**types, "epsilon": "fp32"}, constants, names,
                    {"num_warps": WARPS}, given)
        )  # fmt: skip
    return made


def pools(dtype: str, channels: int) -> list[Program]:
    """Return the kernels of `max_pool`; `dtype` is that of the activations."""
    from fastselfie.kernels import max_pool_triton as program

    tile = dict(zip(("BR", "BC"), program.tile_of(channels), strict=True))
    types = {**dict.fromkeys(("x", "y", "grad_y", "grad_x"), dtype), "places": "*u8"}
    aligned = {*types, "C"} if channels % 16 == 0 else set(types)
    return [
        Program("max_pool", f"{kernel.__name__}, C {channels}, {dtype[1:]}", kernel, types, tile,
                tuple(n for n in kernel.arg_names if n in aligned),
                {"num_warps": program.WARPS}, tile)
        for kernel in (program.window_maximum, program.square_gradient)
    ]  # fmt: skip


def pointwise(dtype: str, inputs: int, outputs: int, summed: bool) -> Program:
    """Return the kernel of `pointwise_norm_relu` that multiplies.

    Args:
        dtype: Of x, the weight and the result.
        inputs: K.
        outputs: N.
        summed: Whether a shortcut is added.
    """
    from fastselfie.kernels import pointwise_triton as program
    from fastselfie.kernels.matrix_tiles_triton import WARPS

    tile = program.tile_of(inputs, outputs)
    types = {**dict.fromkeys(("x", "weight", "shortcut", "out"), dtype), "partial": "*fp32"}
    constants: dict[str, Any] = tile if summed else {**tile, "shortcut": None}
    sizes = {"K": inputs, "N": outputs}
    aligned = {*types, *(name for name, size in sizes.items() if size % 16 == 0)}
    names = tuple(n for n in program.multiply.arg_names if n in aligned and n not in constants)
    shape = f"K {inputs}, N {outputs}, {dtype[1:]}{', summed' if summed else ''}"
    options = {"num_warps": WARPS, "num_stages": program.STAGES, "maxnreg": program.REGISTERS}
    return Program("pointwise", shape, program.multiply, types, constants, names, options, tile)


def compiled(program: Program, target: int) -> dict[str, Any]:
    """Compile a program for sm_TARGET and read its resources.

    Spilled registers are on a stack. A stack that no instruction reads or writes is not counted.
    """
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
        text = _dumped("--dump-resource-usage", file.name)
        usage = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
        spilled = usage["STACK"] + usage["LOCAL"]
        if spilled:
            code = _dumped("-sass", file.name)
            assert "EXIT" in code, "cuobjdump prints no code"
            if not re.search(r"\b(STL|LDL)\b", code):
                spilled = 0
    return {
        "program": program.name,
        "shape": program.shape,
        "target": f"sm_{target}",
        "tile": program.tile,
        "registers": usage["REG"],
        "spilled_bytes": spilled,
        "shared_bytes": int(binary.metadata.shared),
    }


def _dumped(what: str, cubin: str) -> str:
    """Return what cuobjdump prints of a compiled program."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return subprocess.run(
        [str(tool), what, cubin], capture_output=True, text=True, check=True
    ).stdout


if __name__ == "__main__":
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise SystemExit("error: TRITON_INTERPRET=1 is set: nothing is compiled then")
    losses = [query(shape) if shape.grid is None else score(shape) for shape in _SHAPES]
    programs = [*losses, scaling(), patches("*bf16", "bfloat16"),
                patches("*fp32", "float32"),
                patches("*bf16", "bfloat16, changed", changed=True),
                *norms("*bf16", 1024, summed=True), *pools("*bf16", 64),
                pointwise("*bf16", 256, 1024, summed=True)]  # fmt: skip
    json.dump([compiled(each, target) for target in TARGETS for each in programs], sys.stdout)
