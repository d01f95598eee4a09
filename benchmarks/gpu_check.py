"""Make every check that needs a GPU: correctness, no waiting for the device, times, rates.

python benchmarks/gpu_check.py quick --json OUT        # benchmarks/gpu_check.sh calls it
python benchmarks/gpu_check.py full --json OUT

`quick` is the checks that take seconds each. `full` adds those that compile networks or measure
with large batches: on small ones a step of in224 is bound by launches.

The result has one entry per check: "ok", "FAILED" or "missing" (a package is not installed, so the
check was not made), its seconds, and what it measured or why it failed. It is written after every
check. A check that fails does not stop the others. When the time for all checks is over, the
remaining ones fail.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from support.checks import Check, require, run_checks, within
from support.norm_check import norm_parity
from torch import Tensor

from fastselfie.config import Config
from fastselfie.config.load import load_config
from fastselfie.data.dataset import open_dataset
from fastselfie.data.loaders import build_loader
from fastselfie.kernels import reference
from fastselfie.kernels.distractor_score import distractor_score
from fastselfie.kernels.patch_changes import UNCHANGED, PatchChanges
from fastselfie.kernels.patchify import patchify
from fastselfie.kernels.query_score import query_score
from fastselfie.profiling.run import profile_config
from fastselfie.system.accelerator import choose_accelerator
from fastselfie.training.pretrain import build_pretraining

HERE = Path(__file__).parent
CONFIGS = HERE.parent / "configs"


# dtypes of u and h. In training u is float32, as the layer norms under autocast make it.
_SCORED = (
    (torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float16), (torch.float32, torch.bfloat16), (torch.float32, torch.float16),
)  # fmt: skip


def kernel_parity() -> dict[str, Any]:
    """Loss and gradients of the Triton programs against float64: errors / what is allowed."""
    ratios: dict[str, dict[str, float]] = {}
    for m, d, b in ((2, 17, 3), (4, 1024, 64), (12, 1024, 64), (16, 640, 7), (64, 64, 5)):
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
    for size, patch in ((32, 8), (224, 32), (224, 224)):
        images = torch.randint(0, 256, (9, size, size, 3), dtype=torch.uint8, generator=random)
        places = (size // patch) ** 2
        order = torch.stack([torch.randperm(places, generator=random) for _ in range(9)])
        flip = torch.rand(9, generator=random) < 0.5
        images, flip, order = images.cuda(), flip.cuda(), order.cuda()
        mean, std = (torch.full((3,), v, device="cuda") for v in (0.45, 0.22))
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


def sync_free_step() -> dict[str, Any]:
    """A step between log points makes the host wait for nothing, in bf16 and in fp16."""
    for precision in ("bf16", "fp16"):
        config = _cifar(f"runtime.precision={precision}")
        take, _ = _training(config)
        take(2)  # memory and the optimiser's state are made
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            take(3)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return {"steps": 3, "precisions": ["bf16", "fp16"]}


def precision_and_graphs() -> dict[str, Any]:
    """Losses of 20 steps: fp32 eager, bf16, fp16 with its scaler, compiled, as CUDA graphs."""
    kinds = {
        "fp32": ("runtime.precision=fp32",),
        "bf16": ("runtime.precision=bf16",),
        "fp16": ("runtime.precision=fp16",),
        "compiled": ("runtime.precision=fp32", "runtime.compile=default"),
        "graphs": ("runtime.precision=fp32", "runtime.compile=default", "runtime.cuda_graphs=true"),
    }
    losses = {name: _losses(_cifar("model.dropout=0.0", *sets)) for name, sets in kinds.items()}
    for name, found in losses.items():
        require(bool(np.isfinite(found).all()), f"{name}: a loss is not finite: {found}")
        # The first step is the same task for all; later ones drift apart as training does.
        apart = abs(found[0] - losses["fp32"][0])
        require(apart < 0.05, f"{name}: the first loss is off by {apart:.3f}")
        require(found[-1] < found[0] + 0.5, f"{name}: the loss grows: {found}")
    return {"losses": losses}


def dali_mixed() -> dict[str, Any]:
    """Pixels of DALI's GPU decoder against ours, same boxes: the least PSNR."""
    importlib.import_module("nvidia.dali")  # the loader would name a mistake of the user's
    with tempfile.TemporaryDirectory() as folder:
        beton = _photographs(Path(folder))
        batches = {}
        for loader in ("native", "dali"):
            config = load_config(CONFIGS / "in224.yaml",
                                 [f"data.train={beton}", f"data.loader={loader}"])  # fmt: skip
            source = open_dataset(config.data, config.seed).train
            made = build_loader(source, config.data, config.seed, torch.device("cuda"))
            with closing(made.stream(0, 16)) as stream:
                batches[loader] = torch.cat([b.images.cpu() for b in islice(stream, 2)]).double()
    squares = (batches["native"] - batches["dali"]).square().mean(dim=(1, 2, 3))
    least = float((10 * torch.log10(255**2 / squares.clamp_min(1e-9))).min())
    require(least > 30, f"PSNR {least:.1f} dB")
    return {"least_psnr_db": least}


def kernel_times() -> dict[str, Any]:
    return _script("kernels.py", "--only-times")


def step_rates() -> dict[str, Any]:
    """in224 on random pixels, one switch at a time. All contenders are in memory at once."""
    contenders = "ours,straightforward,compiled,CUDA graphs,reference kernels"
    return _script("step.py", "--config", str(CONFIGS / "in224.yaml"), "--batch", "256",
                   "--contenders", contenders, "--rounds", "2", "--seconds", "1")  # fmt: skip


def end_to_end() -> dict[str, Any]:
    """in224 on JPEGs, made here: loader, step and both."""
    with tempfile.TemporaryDirectory() as folder:
        beton = _photographs(Path(folder), 512)
        sets = ["--set", "pretrain.batch_size=256", "--set", "data.limit=400"]
        return _script(
            "throughput.py", "--data", str(beton), "--loaders", "native", "--rounds", "3",
            "--threads", "8", "--seconds", "2", "--end-to-end", str(CONFIGS / "in224.yaml"), *sets,
        )  # fmt: skip


def profile_phases() -> dict[str, Any]:
    """`fastselfie profile` on JPEGs: each phase has time of the device, except hidden copies."""
    with tempfile.TemporaryDirectory() as folder:
        sets = [f"data.train={_photographs(Path(folder), 512)}", "pretrain.batch_size=256",
                "runtime.compile=off", "runtime.cuda_graphs=false"]  # fmt: skip
        config = load_config(CONFIGS / "in224.yaml", sets)
        figures = profile_config(config, 5, Path(folder) / "profile", None)
    shares = figures["shares"]
    phases = ("patchify", "P", "A", "scoring", "backward", "optimiser")
    missing = [name for name in phases if not shares[name] > 0]
    require(not missing, f"no time in {', '.join(missing)}: {shares}")
    require(abs(sum(shares.values()) - 1) < 1e-6, f"the shares do not add up: {shares}")
    require(bool(figures["memory"]["tensors"]), "no memory over time")
    return {key: figures[key] for key in ("shares", "operators", "rates", "binding", "advice")}


QUICK: tuple[Check, ...] = (
    kernel_parity, norm_parity, patchify_parity, sync_free_step, dali_mixed, profile_phases,
)  # fmt: skip
SLOW: tuple[Check, ...] = (kernel_times, end_to_end, precision_and_graphs, step_rates)
PARTS = {"quick": QUICK, "full": (*QUICK, *SLOW)}
SECONDS = {"quick": 230, "full": 1800}  # for all checks


# --- how ------------------------------------------------------------------------------------------


def _cifar(*sets: str) -> Config:
    shared = ("data.loader=synthetic", "pretrain.batch_size=64", "pretrain.warmup_steps=5")
    return load_config(CONFIGS / "cifar10.yaml", [*shared, *sets])


def _training(config: Config) -> tuple[Callable[[int], None], Any]:
    """(take so many steps, the step)."""
    accelerator = choose_accelerator(config.runtime)
    step = build_pretraining(config, accelerator).step
    source = open_dataset(config.data, config.seed).train
    loader = build_loader(source, config.data, config.seed, accelerator.device)
    batches = loader.stream(0, config.pretrain.batch_size)
    number = iter(range(10**9))

    def take(count: int) -> None:
        for _ in range(count):
            step(next(number), next(batches))

    return take, step


def _losses(config: Config) -> list[float]:
    take, step = _training(config)
    found = []
    for _ in range(20):
        take(1)
        found.append(step.read().loss)
    return found


def _photographs(folder: Path, count: int = 64) -> Path:
    """JPEGs of smooth noise, 400 x 300, prepared as a .beton of four classes."""
    from PIL import Image

    random = np.random.default_rng(0)
    for k in range(count):
        coarse = random.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        path = folder / "photographs" / f"c{k % 4}" / f"{k}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(coarse).resize((400, 300), Image.Resampling.BICUBIC).save(path, quality=90)
    out = folder / "photographs.beton"
    prepare = [sys.executable, "-m", "fastselfie", "prepare", str(folder / "photographs")]
    subprocess.run([*prepare, "--out", str(out)], check=True, capture_output=True)
    return out


def _script(name: str, *arguments: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        call = [sys.executable, str(HERE / name), *arguments, "--json", str(out)]
        with subprocess.Popen(
            call, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        ) as process:  # fmt: skip
            try:
                _, said = process.communicate()
            finally:  # where the time is over, its workers would go on and hold the GPU
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        require(process.returncode == 0, said[-2000:])
        result: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--json", type=Path, required=True, metavar="OUT")
    asked = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("torch sees no GPU here: see `fastselfie doctor`")
    checks = run_checks(PARTS[asked.part], asked.json, SECONDS[asked.part])
    for made in checks:
        print(f"{made['state']:8} {made['check']} ({made['seconds']} s) {made.get('why', '')}")
    if any(made["state"] == "FAILED" for made in checks):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
