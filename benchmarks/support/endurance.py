"""Measurements of reliability.py in one process: memory over many epochs, cost of a save."""

from __future__ import annotations

import os
import statistics
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from fastselfie.config import Config
from fastselfie.config.load import load_config
from fastselfie.data.dataset import open_dataset
from fastselfie.data.loaders import build_loader
from fastselfie.system.accelerator import choose_accelerator

_SETTLED = 20  # epochs until buffers and pools have their size
_GROWTH = 0.02
_COST = 0.01
_ROUND = 40  # steps


def memory_over_epochs(config_path: Path, epochs: int) -> dict[str, Any]:
    """Measure memory and threads over complete and abandoned epochs of the native loader."""
    config = load_config(config_path)
    through = _grown(config, epochs, early=False)
    early = _grown(config, epochs, early=True)
    lost = [
        f"{name}: memory grew by {found['growth']:.1%}, threads from {found['threads']}"
        for name, found in (("run through", through), ("left early", early))
        if found["growth"] > _GROWTH or len(set(found["threads"])) > 1
    ]
    return {"made": epochs, "run_through": through, "left_early": early, "lost": lost}


def _grown(config: Config, epochs: int, early: bool) -> dict[str, Any]:
    source = open_dataset(config.data, config.seed).train
    loader = build_loader(source, config.data, config.seed, torch.device("cpu"))
    batch = config.pretrain.batch_size
    sizes, threads = [], []
    consumed = 0
    for epoch in range(epochs):
        with closing(loader.stream(consumed, batch)) as batches:
            for _ in range(1 if early else -(-len(loader) // batch)):
                next(batches)
                consumed += batch
        if epoch in (_SETTLED - 1, epochs - 1):
            sizes.append(_resident())
            threads.append(len(os.listdir("/proc/self/task")))
    return {
        "mb": [round(size / 2**20, 1) for size in sizes],
        "growth": round(sizes[-1] / sizes[0] - 1, 4),
        "threads": threads,
    }


def _resident() -> int:
    fields = Path("/proc/self/statm").read_text(encoding="ascii").split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def saving_cost(config_path: Path, folder: Path, rounds: int) -> dict[str, Any]:
    """Measure what a checkpoint costs, as a share of the steps between two checkpoints.

    Rounds of steps alternate, with a save at the beginning and without.

    Returns:
        "bound": the time of a save alone, which is the cost if nothing of it overlaps with steps.
        "beside": what the save added to a round. "stall_ms": how long a step waits while the state
        is copied.
    """
    from fastselfie.training.checkpoint_writer import CheckpointWriter
    from fastselfie.training.pretrain import build_pretraining, pretraining_stage
    from fastselfie.training.stage_state import Progress, checkpoint_state

    config = load_config(config_path, ["data.loader=synthetic"])
    accelerator = choose_accelerator(config.runtime)
    dataset = open_dataset(config.data, config.seed)
    stage = pretraining_stage(config, dataset)
    step = build_pretraining(config, accelerator).step
    loader = build_loader(dataset.train, config.data, config.seed, accelerator.device)
    settings = config.pretrain
    took: dict[bool, list[float]] = {True: [], False: []}
    stalls, alone, steps, done = [], [], [], 0
    folder.mkdir(parents=True)
    with (
        closing(loader.stream(0, settings.batch_size)) as batches,
        CheckpointWriter(folder, config.checkpoint, 0) as saver,
    ):
        for number in range(-1, 2 * rounds):  # the first warms up
            saves = number % 2 == 0
            begun = time.perf_counter()
            if saves:
                saver.save(
                    checkpoint_state(stage, step, Progress(done), [step.metric_accumulators()])
                )
                stalls.append(time.perf_counter() - begun)
            for _ in range(_ROUND):
                since = time.perf_counter()
                step(done % settings.steps, next(batches))
                done += 1
                steps.append(time.perf_counter() - since)
            step.read()
            saver.wait()
            if number >= 0:
                took[saves].append(time.perf_counter() - begun)
            if not saves:
                begun = time.perf_counter()
                saver.save(
                    checkpoint_state(stage, step, Progress(done), [step.metric_accumulators()])
                )
                saver.wait()
                alone.append(time.perf_counter() - begun)
    middle, save = statistics.median(steps), statistics.median(alone)
    between = middle * settings.save_every
    bound = save / between
    beside = [(a - b) / between for a, b in zip(took[True], took[False], strict=True)]
    return {
        "made": rounds,
        "config": config.name,
        "save_every": settings.save_every,
        "beside": {"median": round(statistics.median(beside), 5), "min": round(min(beside), 5),
                   "max": round(max(beside), 5)},
        "bound": round(bound, 5),
        "save_ms": round(save * 1e3, 2),
        "mb": round((folder / "latest.pt").stat().st_size / 1e6, 2),
        "stall_ms": round(statistics.median(stalls) * 1e3, 2),
        "step_ms": round(middle * 1e3, 2),
        "relative": [round(s / middle, 3) for s in steps[_ROUND:]],
        "lost": [f"a save costs {bound:.1%} of the steps between two"] if bound > _COST else [],
    }  # fmt: skip
