"""Checks of whole training steps on a GPU: losses, waiting, guard, memory, resume, two ranks."""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastselfie.config import Config
from fastselfie.config.load import load_config
from fastselfie.data.dataset import open_dataset
from fastselfie.data.loaders import build_loader
from fastselfie.system.accelerator import choose_accelerator
from fastselfie.training.memory import estimate_pretraining
from fastselfie.training.metrics_log import read_log
from fastselfie.training.pretrain import build_pretraining
from fastselfie.training.step import TrainStep
from support.checks import require
from support.dry_gpu import device, sized
from support.gpu_programs import CONFIGS, run


def sync_free_step() -> dict[str, Any]:
    """A step between log points makes the host wait for nothing, in bf16 and in fp16."""
    for precision in ("bf16", "fp16"):
        take, _ = _training(_cifar(f"runtime.precision={precision}"))
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
    compiled = ("runtime.precision=fp32", "runtime.compile=default")
    kinds = {
        "fp32": ("runtime.precision=fp32",),
        "bf16": ("runtime.precision=bf16",),
        "fp16": ("runtime.precision=fp16",),
        "compiled": compiled,
        "graphs": (*compiled, "runtime.cuda_graphs=true"),
    }
    losses = {name: _losses(_cifar("model.dropout=0.0", *sets)) for name, sets in kinds.items()}
    for name, found in losses.items():
        require(bool(np.isfinite(found).all()), f"{name}: a loss is not finite: {found}")
        # The first step is the same task for all; later ones drift apart as training does.
        apart = abs(found[0] - losses["fp32"][0])
        require(apart < 0.05, f"{name}: the first loss is off by {apart:.3f}")
        require(found[-1] < found[0] + 0.5, f"{name}: the loss grows: {found}")
    return {"losses": losses}


def skip_guard() -> dict[str, Any]:
    """A step whose loss is not finite changes no weight, momentum or statistic."""
    take, step = _training(_cifar("pretrain.on_nonfinite=skip", "runtime.precision=bf16"))
    take(2)
    momentum = [state["momentum_buffer"] for state in step.optimizer.state.values()]
    kept = [*step.model.state_dict().values(), *momentum]
    before, objective = [value.clone() for value in kept], step.objective

    def broken(batch: Any) -> Any:
        loss, correct, answers = objective(batch)
        return loss * math.nan, correct, answers

    step.objective = broken
    take(1)
    changed = sum(not torch.equal(a, b) for a, b in zip(before, kept, strict=True))
    means = step.read()
    require(changed == 0, f"{changed} of {len(kept)} tensors changed")
    require((means.steps, means.skipped) == (2, 1), f"{means}")
    step.objective = objective
    take(1)
    require(step.read().steps == 1, "the step after it was not applied")
    return {"tensors": len(kept)}


def memory_estimate() -> dict[str, Any]:
    """The estimate that chooses micro-batches, against the peak of a step of in224 and cifar10."""
    found = {}
    for name, images in (("cifar10", sized(256, 4)), ("in224", sized(64, 2))):
        sets = ("data.loader=synthetic", f"pretrain.batch_size={images}", "runtime.compile=off")
        config = load_config(_config(name), [*sets, f"pretrain.micro_batch_size={images}"])
        estimate = estimate_pretraining(config, choose_accelerator(config.runtime).precision)
        torch.cuda.reset_peak_memory_stats()
        take, _ = _training(config)
        take(2)
        torch.cuda.synchronize()
        peak, total = torch.cuda.max_memory_allocated(), estimate.total(images)
        found[name] = {"images": images, "estimate": total, "peak": peak, "ratio": peak / total}
    for name, row in found.items():
        # A peak above 1 / 0.6 of it would not fit where the estimate chose the micro-batch.
        most = sized(1 / 0.6, math.inf)
        require(row["ratio"] < most, f"{name}: {row['ratio']:.2f} times the estimate")
    return found


def resume() -> dict[str, Any]:
    """A run that goes on from a checkpoint has the losses of the uninterrupted one."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(_straight_run().name) / "pretrain" / "step-0000002.pt"
        resumed = _train(Path(folder) / "run", "--resume", str(checkpoint))
    straight = _logged(Path(_straight_run().name))
    require(len(resumed) == 2, f"the resumed run logged {resumed}")
    apart = max(abs(a - b) for a, b in zip(straight[2:], resumed, strict=True))
    # A GPU adds in any order.
    require(apart < 0.02, f"losses are {apart:.4f} apart: {straight}, {resumed}")
    return {"straight": straight, "resumed": resumed}


def two_ranks() -> dict[str, Any]:
    """Two ranks train, on NCCL, with the losses of one up to batch norm over half the images."""
    if torch.cuda.device_count() < 2:
        return {"not_checked": "there is one GPU"}
    with tempfile.TemporaryDirectory() as folder:
        both = _train(Path(folder) / "run", ranks=2)
    alone = _logged(Path(_straight_run().name))
    require(len(both) == 4, f"two ranks logged {both}")
    apart = abs(alone[0] - both[0])
    require(apart < 0.2, f"the first losses are {apart:.3f} apart: {alone}, {both}")
    return {"alone": alone, "two ranks": both}


def _config(name: str) -> Path:
    """Path of a config, in a dry run of the smallest."""
    return CONFIGS / f"{sized(name, 'quickstart')}.yaml"


def _cifar(*sets: str) -> Config:
    """The config of the steps; compiled only where `sets` says so."""
    shared = ("data.loader=synthetic", f"pretrain.batch_size={sized(64, 4)}",
              "pretrain.warmup_steps=5", "runtime.compile=off")  # fmt: skip
    return load_config(_config("cifar10"), [*shared, *sets])


def _training(config: Config) -> tuple[Callable[[int], None], TrainStep]:
    """(take so many steps, the step)."""
    accelerator = choose_accelerator(config.runtime)
    step = build_pretraining(config, accelerator).step
    source = open_dataset(config.data, config.seed).train
    loader = build_loader(source, config.data, config.seed, accelerator.device)
    batches = loader.stream(0, config.pretrain.batch_size)
    number = itertools.count()

    def take(count: int) -> None:
        for _ in range(count):
            step(next(number), next(batches))

    return take, step


def _losses(config: Config) -> list[float]:
    take, step = _training(config)
    found = []
    for _ in range(sized(20, 2)):
        take(1)
        found.append(step.read().loss)
    return found


@cache
def _straight_run() -> tempfile.TemporaryDirectory[str]:
    """Folder of an uninterrupted run, which exists as long as this process."""
    folder = tempfile.TemporaryDirectory()
    _train(Path(folder.name))
    return folder


def _train(out: Path, *options: str, ranks: int = 1) -> list[float]:
    """Run four steps of pretraining on so many ranks; return the losses."""
    several = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}")
    stages = ("log_every=1", "save_every=2", "eval_every=4", "steps=4", "warmup_steps=1",
              "eval_images=16", "knn_every=null", "picture_steps=[]",
              f"batch_size={sized(64, 8)}")  # fmt: skip
    run(
        *(several if ranks > 1 else ()), "-m", "fastselfie", "train", str(_config("cifar10")),
        "data.loader=synthetic", *(f"pretrain.{each}" for each in stages), "checkpoint.keep=4",
        f"runtime.device={device().type}", "runtime.compile=off", "--stage", "pretrain",
        "--out", str(out), *options,
    )  # fmt: skip
    return _logged(out)


def _logged(out: Path) -> list[float]:
    lines = read_log(out / "pretrain" / "log.jsonl")
    return [line["loss"] for line in lines if "loss" in line]
