"""The loader alone, the step alone (on random pixels) and both together: which one binds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

from rounds import spread

from fastselfie.config import Config
from fastselfie.data.loaders import Batch, SyntheticLoader, build_loader
from fastselfie.data.sources import open_dataset
from fastselfie.device import choose_machine
from fastselfie.pretrain import build_pretraining
from fastselfie.step import TrainStep

_WARM = 3  # batches


def end_to_end(config: Config, rounds: int, seconds: float) -> dict[str, Any]:
    """Images/s of each over alternating rounds. binding: the slower of loader and step."""
    machine = choose_machine(config.runtime)
    source = open_dataset(config.data, config.seed).train
    step = build_pretraining(config, machine).step
    batch_size = config.pretrain.batch_size
    loader = build_loader(source, config.data, config.seed, machine.device)
    noise = SyntheticLoader(source, config.data, config.seed, machine.device)
    with (
        closing(loader.train(0, batch_size, config.patches)) as loaded,
        closing(noise.train(0, batch_size, config.patches)) as synthetic,
        closing(loader.train(0, batch_size, config.patches)) as trained,
    ):
        parts = {"loader": (loaded, None), "step": (synthetic, step), "e2e": (trained, step)}
        found: dict[str, list[float]] = {name: [] for name in parts}
        for number in range(rounds + 1):
            for name, (batches, taken) in parts.items():
                rate = _rate(batches, taken, seconds)
                if number:  # the first is the warm-up
                    found[name].append(rate)
    result: dict[str, Any] = {name: spread(rates) for name, rates in found.items()}
    binding = min(("loader", "step"), key=lambda name: result[name]["median"])
    share = result["e2e"]["median"] / result[binding]["median"]
    return {
        "config": config.name,
        "batch_size": batch_size,
        "image_size": config.data.image_size,
        **result,
        "binding": binding,
        "e2e_share_of_binding": round(share, 4),
    }


def _rate(batches: Iterator[Batch], step: TrainStep | None, seconds: float) -> float:
    """Images/s over at least `seconds`, the device waited for."""
    for number in range(_WARM):
        batch = next(batches)
        if step is not None:
            step(number, batch)
    if step is not None:
        step.read()
    count, begun, spent = 0, time.perf_counter(), 0.0
    while spent < seconds:
        batch = next(batches)
        count += len(batch.images)
        if step is not None:
            step(count, batch)
            step.read()  # waits: the clock must not run ahead of a GPU
        spent = time.perf_counter() - begun
    return count / spent
