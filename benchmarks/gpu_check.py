"""Make every check that needs a GPU: correctness, no waiting for the device, times, rates.

python benchmarks/gpu_check.py quick --json OUT        # benchmarks/gpu_check.sh calls it
python benchmarks/gpu_check.py full --json OUT
python benchmarks/gpu_check.py full --dry --json OUT    # needs no GPU

`quick` is the checks that take seconds each. `full` adds those that compile networks or measure
with large batches: on small ones a step of in224 is bound by launches. With --dry, every line runs
on the CPU with tiny sizes, so that its first run on a GPU is not its first run.

The result has one entry per check: "ok", "FAILED" or "missing" (a package is not installed, so the
check was not made), its seconds, and what it measured or why it failed. It is written after every
check. A check that fails does not stop the others. When the time for all checks is over, the
remaining ones fail.
"""

from __future__ import annotations

import argparse
import importlib
import math
import os
import sys
import tempfile
from contextlib import closing, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from support.checks import Check, require, run_checks, within
from support.dry_gpu import device, dry_gpu, sized
from support.gpu_programs import CONFIGS, photographs, script
from support.gpu_training import (
    memory_estimate,
    precision_and_graphs,
    resume,
    skip_guard,
    sync_free_step,
    two_ranks,
)
from support.norm_check import norm_parity
from support.pointwise_check import product_parity, product_times
from support.pool_check import pool_parity
from torch import Tensor

from fastselfie.config.load import load_config
from fastselfie.data.dataset import open_dataset
from fastselfie.data.loaders import build_loader
from fastselfie.kernels import reference
from fastselfie.kernels.distractor_score import distractor_score
from fastselfie.kernels.patch_changes import UNCHANGED, PatchChanges
from fastselfie.kernels.patchify import patchify
from fastselfie.kernels.query_score import query_score
from fastselfie.profiling.run import profile_config

# dtypes of u and h. In training u is float32, as the layer norms under autocast make it.
_SCORED = (
    (torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float16), (torch.float32, torch.bfloat16), (torch.float32, torch.float16),
)  # fmt: skip


def kernel_parity() -> dict[str, Any]:
    """Loss and gradients of the Triton programs against float64: errors / what is allowed."""
    ratios: dict[str, dict[str, float]] = {}
    shapes = ((2, 17, 3), (4, 1024, 64), (12, 1024, 64), (16, 640, 7), (64, 64, 5))
    for m, d, b in sized(shapes, ((2, 17, 3),)):
        for u_dtype, dtype in _SCORED:
            exact, torchs, tritons = (_score(m, d, b, u_dtype, dtype, impl) for impl in
                                      ("float64", "reference", "triton"))  # fmt: skip
            names = "loss", "du", "dh", "dtable", "pooled loss", "dv", "pooled dh"
            ratios[f"M {m}, D {d}, {u_dtype} and {dtype}"] = {
                name: error_of_allowed(true, plain, found, d)
                for name, true, plain, found in zip(names, exact, torchs, tritons, strict=True)
            }
    return within(ratios, 1.0, "error of what is allowed")


def error_of_allowed(true: Tensor, plain: Tensor, found: Tensor, width: int) -> float:
    """The greatest error of `found`, by twice that of `plain`, and what tensor cores add.

    A result is rounded to its dtype once, whoever computes it. A tensor core adds 8 products
    (tf32; 16 in half precision) to a float32 sum and cuts off what does not fit, less than a last
    place of 2^-23, where torch's float32 rounds to nearest; our products are three such chains of
    width / 8 links. One product in tf32 alone would err by about 2^-12, over 5 times as much at
    D = 1024.
    """
    links = 3 * math.ceil(width / 8)
    own = (torch.finfo(found.dtype).eps + links * 2**-23) * float(true.abs().max())
    allowed = 2 * float((plain.double() - true).abs().max()) + own
    return float((found.double() - true).abs().max()) / allowed


def _in224() -> str:
    """Path of the config that is measured, in a dry run of the smallest."""
    return str(CONFIGS / f"{sized('in224', 'quickstart')}.yaml")


def _score(
    m: int, d: int, b: int, u_dtype: torch.dtype, dtype: torch.dtype, impl: str
) -> list[Tensor]:
    random = torch.Generator().manual_seed(m * d)
    kinds = (((b, d), u_dtype), ((b, m, d), dtype))
    inputs = [torch.randn(*shape, generator=random).to(kind) for shape, kind in kinds]
    table = torch.randn(64, d, generator=random)
    locations = torch.stack([torch.randperm(64, generator=random)[:m] for _ in range(b)]).cuda()
    wide = torch.float64 if impl == "float64" else None
    leaves = [t.cuda().to(wide or t.dtype).requires_grad_() for t in (*inputs, table)]
    u, h, positions = leaves
    chosen: Any = "triton" if impl == "triton" else "reference"
    loss, _ = distractor_score(u, h, positions, locations, d**-0.5, chosen)
    summed = [loss.detach(), *torch.autograd.grad(loss, leaves)]
    # v in float32, as layer norm leaves it
    v = (u.detach()[:, None] + positions.detach()[locations]).requires_grad_()
    loss, _ = query_score(v, h, d**-0.5, chosen)
    return [*summed, loss.detach(), *torch.autograd.grad(loss, (v, h))]


def patchify_parity() -> dict[str, Any]:
    """Patches of the Triton program against the reference: differences in roundings."""
    ratios: dict[str, dict[str, float]] = {}
    random = torch.Generator().manual_seed(0)
    for size, patch in sized(((32, 8), (224, 32), (224, 224)), ((32, 8),)):
        images = torch.randint(0, 256, (9, size, size, 3), dtype=torch.uint8, generator=random)
        places = (size // patch) ** 2
        order = torch.stack([torch.randperm(places, generator=random) for _ in range(9)])
        flip = torch.rand(9, generator=random) < 0.5
        images, flip, order = images.cuda(), flip.cuda(), order.cuda()
        mean, std = (torch.full((3,), v).cuda() for v in (0.45, 0.22))
        changes = PatchChanges(
            patch - 2,
            torch.randint(0, 3, (9, places, 2), generator=random).cuda(),
            (torch.rand(9, places, generator=random) < 0.5).cuda(),
            (torch.rand(9, places, 2, generator=random) * 0.4 + torch.tensor([0.8, -0.2])).cuda(),
        )
        given = (images, flip, order, patch, mean, std)
        for name, of in (("", UNCHANGED), (", changed", changes)):
            for dtype in (torch.float32, torch.bfloat16, torch.float16):
                found = patchify(*given, dtype, changes=of).float()
                true = reference.patchify(*given, dtype, of).float()
                apart = float((found - true).abs().max()) / torch.finfo(dtype).eps
                ratios.setdefault(f"{size} in patches of {patch}{name}", {})[str(dtype)] = apart
    return within(ratios, 4.0, "difference in roundings")  # levels are below 4 = 2 bits


def dali_mixed() -> dict[str, Any]:
    """Pixels of DALI's GPU decoder against ours, same boxes: the least PSNR."""
    importlib.import_module("nvidia.dali")  # the loader would name a mistake of the user's
    with tempfile.TemporaryDirectory() as folder:
        beton = photographs(Path(folder))
        batches = {}
        for loader in ("native", "dali"):
            config = load_config(CONFIGS / "in224.yaml",
                                 [f"data.train={beton}", f"data.loader={loader}"])  # fmt: skip
            source = open_dataset(config.data, config.seed).train
            made = build_loader(source, config.data, config.seed, device())
            with closing(made.stream(0, 16)) as stream:
                batches[loader] = torch.cat([b.images.cpu() for b in islice(stream, 2)]).double()
    squares = (batches["native"] - batches["dali"]).square().mean(dim=(1, 2, 3))
    least = float((10 * torch.log10(255**2 / squares.clamp_min(1e-9))).min())
    require(least > 30, f"PSNR {least:.1f} dB")
    return {"least_psnr_db": least}


def kernel_times() -> dict[str, Any]:
    dry = ("--batch", "2", "--seconds", "0.01")
    return script("kernels.py", "--only-times", *sized((), dry))


def step_rates() -> dict[str, Any]:
    """in224 on random pixels, one switch at a time. All contenders are in memory at once."""
    contenders = sized("ours,straightforward,compiled,CUDA graphs,reference kernels",
                       "ours,straightforward,compiled")  # fmt: skip
    rounds = ("--batch", "256", "--rounds", "2", "--seconds", "1")
    dry = ("--batch", "8", "--rounds", "1", "--seconds", "0.05")
    return script("step.py", "--config", _in224(), "--contenders", contenders,
                  *sized(rounds, dry))  # fmt: skip


def end_to_end() -> dict[str, Any]:
    """in224 on JPEGs, made here: loader, step and both."""
    return _end_to_end("native")


def end_to_end_dali() -> dict[str, Any]:
    """The same with DALI, which decodes on the GPU."""
    importlib.import_module("nvidia.dali")
    return _end_to_end("dali")


def end_to_end_ffcv() -> dict[str, Any]:
    """The same with FFCV."""
    importlib.import_module("ffcv")
    return _end_to_end("ffcv")


def _end_to_end(loader: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        beton = photographs(Path(folder), 512)
        batch, limit = sized((256, 400), (8, 32))
        rounds = ("--rounds", "3", "--threads", "8", "--seconds", "2")
        dry = ("--rounds", "1", "--threads", "1", "--seconds", "0.05", "--batch", "8")
        sets = (f"pretrain.batch_size={batch}", f"data.limit={limit}", f"data.loader={loader}")
        return script(
            "throughput.py", "--data", str(beton), "--loaders", "native", "--end-to-end", _in224(),
            *(word for each in sets for word in ("--set", each)),
            *sized(rounds, dry),
        )  # fmt: skip


def profile_phases() -> dict[str, Any]:
    """`fastselfie profile` on JPEGs: each phase has time of the device, except hidden copies."""
    with tempfile.TemporaryDirectory() as folder:
        sets = [f"data.train={photographs(Path(folder), 512)}", "runtime.compile=off",
                f"pretrain.batch_size={sized(256, 8)}"]  # fmt: skip
        config = load_config(_in224(), sets)
        figures = profile_config(config, sized(5, 2), Path(folder) / "profile", None)
    shares = figures["shares"]
    phases = ("patchify", "P", "A", "scoring", "backward", "optimiser")
    missing = [name for name in phases if not shares[name] > 0]
    require(not missing, f"no time in {', '.join(missing)}: {shares}")
    require(abs(sum(shares.values()) - 1) < 1e-6, f"the shares do not add up: {shares}")
    require(bool(figures["memory"]["tensors"]), "no memory over time")
    return {key: figures[key] for key in ("shares", "operators", "rates", "binding", "advice")}


QUICK: tuple[Check, ...] = (
    kernel_parity, norm_parity, product_parity, pool_parity, patchify_parity, sync_free_step,
    skip_guard, dali_mixed, profile_phases,
)  # fmt: skip
SLOW: tuple[Check, ...] = (
    kernel_times, product_times, end_to_end, end_to_end_dali, end_to_end_ffcv, memory_estimate,
    resume, two_ranks, precision_and_graphs, step_rates,
)  # fmt: skip
PARTS = {"quick": QUICK, "full": (*QUICK, *SLOW)}
SECONDS = {"quick": 230, "full": 1800}  # for all checks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--json", type=Path, required=True, metavar="OUT")
    parser.add_argument("--dry", action="store_true", help="run every line on the CPU, tiny sizes")
    asked = parser.parse_args()
    if asked.dry and os.environ.get("TRITON_INTERPRET") != "1":  # read when torch imports Triton
        os.execve(
            sys.executable, [sys.executable, *sys.argv], {**os.environ, "TRITON_INTERPRET": "1"}
        )
    if not asked.dry and not torch.cuda.is_available():
        parser.error("torch sees no GPU here: see `fastselfie doctor`")
    with dry_gpu() if asked.dry else nullcontext():
        checks = run_checks(PARTS[asked.part], asked.json, SECONDS[asked.part])
    for made in checks:
        print(f"{made['state']:8} {made['check']} ({made['seconds']} s) {made.get('why', '')}")
    if any(made["state"] == "FAILED" for made in checks):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
