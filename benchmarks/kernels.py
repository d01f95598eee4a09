"""Measure the fused losses and the max pool beside plain torch; count bytes, read registers.

python benchmarks/kernels.py --json OUT

Times forward and backward of the reference, of the reference under torch.compile and, on a GPU, of
the Triton program; that of a loss is also timed alone. Without a GPU a program is only interpreted,
and that is not timed. Bytes are counted in the interpreter, and programs are compiled for GPUs that
need not be present, to read their registers and spilled bytes.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import quantiles
from typing import Any

import torch
from support.arguments import Parser, above_zero, result_file
from support.conditions import command
from support.script import run_script
from support.traffic import SHAPES, Shape, inputs, launch, loss_of, model_bytes
from torch import Tensor
from torch.utils._pytree import tree_leaves

from fastselfie.config import RuntimeConfig
from fastselfie.errors import UserError
from fastselfie.kernels.impl import Impl, unavailable
from fastselfie.kernels.max_pool import max_pool
from fastselfie.runs.doctor import environment
from fastselfie.system.accelerator import choose_device

HERE = Path(__file__).parent
# Images. A GPU makes 256 in the time that Python takes to ask for them.
_BATCH = {"cpu": 256, "cuda": 8192}


def main(arguments: list[str]) -> None:
    device, _ = choose_device(RuntimeConfig())
    options = _parse(arguments, device)
    load = os.getloadavg()
    result: dict[str, Any] = {}
    if not options.only_times:
        result["traffic"] = _json_of("traffic", interpret=True)
        result["norms"] = _json_of("norm_traffic", interpret=True)
        result["resources"] = _json_of("resources", interpret=False)
    result["times"] = [
        _times(replace(shape, b=options.batch), device, options.seconds) for shape in SHAPES
    ]
    result["max_pool_times"] = _pool_times(options.batch, device, options.seconds)
    result["environment"] = environment(device) | {
        "triton": importlib.metadata.version("triton"),
        "load_average": {"start": load, "end": os.getloadavg()},
    }
    result["protocol"] = _protocol(device)
    options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    _show(result)


def _parse(arguments: list[str], device: torch.device) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, batch = parser.add_argument, _BATCH[device.type]
    add("--json", required=True, metavar="OUT")
    add("--batch", type=int, default=batch, help=f"images, for the times; here {batch}")
    add("--seconds", type=float, default=3.0, help="of each time on a CPU")
    add("--only-times", action="store_true", help="neither bytes nor registers, a minute less")
    options = parser.parse_args(arguments)
    above_zero(options, "batch", "seconds")
    if os.environ.get("TRITON_INTERPRET"):
        raise UserError("TRITON_INTERPRET is set: what is timed must not be interpreted")
    options.json = result_file(options.json)
    return options


def _json_of(module: str, interpret: bool) -> Any:
    """Return what a module of support/ prints: one process cannot both interpret and compile."""
    print(f"{module} ...", file=sys.stderr, flush=True)
    variables = {**os.environ, "TRITON_INTERPRET": "1" if interpret else "0"}
    call = [sys.executable, "-m", f"support.{module}"]
    done = subprocess.run(call, cwd=HERE, env=variables, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


# --- times ----------------------------------------------------------------------------------------


def _times(shape: Shape, device: torch.device, seconds: float) -> dict[str, Any]:
    """Milliseconds forward and backward, and GB/s of the model's bytes of the program alone."""
    tensors = inputs(shape, str(device))
    leaves = [x for x in tree_leaves(tensors) if x.requires_grad]
    runs = _contenders(lambda impl: loss_of(shape, tensors, impl), leaves, device)
    found = _measured(runs, device, seconds)
    if device.type == "cuda" and "triton" in runs:
        found["program"] = _program_alone(shape, device)
    least = model_bytes(shape)
    times: dict[str, Any] = {"shape": shape.name, "batch": shape.b, "milliseconds": found}
    if "program" in found:
        times["gigabytes_a_second"] = float(f"{least / found['program']['p50'] / 1e6:.5g}")
    return times


def _pool_times(patches: int, device: torch.device, seconds: float) -> dict[str, Any]:
    """Milliseconds forward and backward of the stem's max pool, in bfloat16, on 32x32 patches."""
    x = torch.randn(patches, 64, 16, 16).to(str(device), torch.bfloat16)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    gradient = torch.ones_like(max_pool(x.detach(), "reference"))
    runs = _contenders(lambda impl: max_pool(x, impl), [x], device, gradient)
    return {"patches": patches, "milliseconds": _measured(runs, device, seconds)}


def _contenders(
    forward: Callable[[Impl], Tensor],
    leaves: list[Tensor],
    device: torch.device,
    gradient: Tensor | None = None,
) -> dict[str, Callable[[], None]]:
    """Return forward and backward passes by name; `gradient` is of the result."""
    compiled = torch.compile(forward, fullgraph=True)
    calls: dict[str, tuple[Callable[[Impl], Tensor], Impl]] = {
        "eager": (forward, "reference"),
        "torch.compile": (compiled, "reference"),
    }
    if unavailable(device) is None:
        calls["triton"] = forward, "triton"

    def run(call: Callable[[Impl], Tensor], impl: Impl) -> None:
        torch.autograd.grad(call(impl), leaves, gradient)

    runs: dict[str, Callable[[], None]] = {
        name: partial(run, *call) for name, call in calls.items()
    }
    for each in runs.values():
        each()  # compiles
    return runs


def _measured(
    runs: dict[str, Callable[[], None]], device: torch.device, seconds: float
) -> dict[str, dict[str, float]]:
    if device.type == "cuda":
        return {name: _on_a_gpu(run) for name, run in runs.items()}
    return _on_a_cpu(runs, seconds)


def _on_a_gpu(run: Callable[[], None]) -> dict[str, float]:
    from triton.testing import do_bench

    return _named(do_bench(run, quantiles=[0.2, 0.5, 0.8]))


def _program_alone(shape: Shape, device: torch.device) -> dict[str, float]:
    """The launch and the sums after it, as a CUDA graph: no Python in between."""
    from triton.testing import do_bench_cudagraph

    tensors, mean = inputs(shape, str(device)), 1.0 / (shape.b * shape.m)

    @torch.no_grad()
    def once() -> None:
        launch(shape, tensors, mean)

    return _named(do_bench_cudagraph(once, quantiles=[0.2, 0.5, 0.8]))


def _on_a_cpu(runs: dict[str, Callable[[], None]], seconds: float) -> dict[str, dict[str, float]]:
    """In turns, so that a disturbance meets them all."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    end = time.perf_counter() + seconds * len(runs)
    while time.perf_counter() < end or len(taken["eager"]) < 5:
        for name, run in runs.items():
            begun = time.perf_counter()
            run()
            taken[name].append(1000 * (time.perf_counter() - begun))
    fifths = {name: quantiles(values, n=10) for name, values in taken.items()}
    return {name: _named([tenths[1], tenths[4], tenths[7]]) for name, tenths in fifths.items()}


def _named(three: Any) -> dict[str, float]:
    return dict(zip(("p20", "p50", "p80"), (float(f"{x:.5g}") for x in three), strict=True))


# --- what to say ----------------------------------------------------------------------------------


def _protocol(device: torch.device) -> dict[str, Any]:
    return {
        "command": command(),
        "notes": [
            "u and h are bfloat16, positions float32, pooled queries v float32, as layer norm "
            "leaves them; forward and backward, gradients for u or v, h and the tables.",
            "model_bytes: u or v, and h read once, their gradients written once. distinct: "
            "addresses that the one launch touches; launch: all its loads and stores, counted in"
            " Triton's interpreter; sums: torch adding up the partial tables, losses and right "
            "answers; scaling: the backward pass where the incoming gradient is not 1 "
            "(unit_scaling: where it is); reference: inputs and outputs of every operation that "
            "plain torch dispatches that is not a view, and so what autograd adds to scaling.",
            "norms: how often the Triton kernels of batch norm with ReLU read or write a tensor of "
            "bfloat16 activations, forward and backward; vectors: what they load and store in "
            "float32 besides, in such passes; reference: as above, so that what torch's batch norm "
            "reads twice counts once: 10 where a GPU makes 13.",
            "resources: compiled by Triton for GPUs that are not there, read with cuobjdump.",
            "times: " + (
                "triton.testing.do_bench; program: the launch and the sums after it, alone, by "
                "do_bench_cudagraph, and gigabytes_a_second of it." if device.type == "cuda" else
                "on this CPU in turns; the Triton program is only interpreted here, so not timed: "
                "it has not run on a GPU."
            ),
        ],
    }  # fmt: skip


def _show(result: dict[str, Any]) -> None:
    for row in result.get("traffic", ()):
        print(row["shape"]["name"], "times the model's bytes:", row["times_model"])
    for row in result.get("norms", ()):
        print(row["norm"]["name"], "passes:", row["passes"])
    for row in result.get("resources", ()):
        usage = f"{row['registers']} registers, {row['spilled_bytes']} bytes spilled"
        print(row["program"], row["shape"], row["target"], usage)
    for row in result["times"]:
        print(row["shape"], f"batch {row['batch']}, ms:", row["milliseconds"])
    print("max pool, ms:", result["max_pool_times"])


if __name__ == "__main__":
    run_script(main, sys.argv[1:])
