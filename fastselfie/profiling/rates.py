"""Measure the loader alone, the step alone (on random pixels) and both together."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from statistics import median
from typing import Any, NamedTuple

from fastselfie.config import Config
from fastselfie.data.dataset import Source
from fastselfie.data.loaders import Batch, Loader, build_loader
from fastselfie.system.resources import usable_cores
from fastselfie.training.step import TrainStep

_WARM_UP = 3  # batches: as many as a loader reads ahead during a pause


class Round(NamedTuple):
    """One measurement.

    Attributes:
        images: Number of images.
        seconds: Its duration.
        waited: Seconds of it that were spent waiting for data.
        cpu: CPU seconds of this process.
    """

    images: int
    seconds: float
    waited: float
    cpu: float


def _spread(values: list[float]) -> dict[str, float]:
    three = {"median": median(values), "min": min(values), "max": max(values)}
    return {name: float(f"{value:.5g}") for name, value in three.items()}


def measure_rates(
    config: Config, source: Source, loader: Loader, step: TrainStep, rounds: int, seconds: float
) -> dict[str, Any]:
    """Measure loader, step and both in alternating rounds, after one that warms up.

    Args:
        config: Config of the run.
        source: The images.
        loader: Of `source`.
        step: The training step.
        rounds: Number of rounds.
        seconds: Shortest duration of each measurement.

    Returns:
        Median, min and max over the rounds, and `binding`, the bottleneck: "loader" or "step".

        * rates: images per second of loader and step alone, and of both together (e2e);
        * waiting: share of the end-to-end time that is spent waiting for data;
        * loader_cpu_s_per_image: CPU seconds of this process, with the loader alone;
        * step_on_the_cores_left: images per second of the step, without the cores that decode;
        * e2e_share_of_binding: end-to-end rate as a share of the slower of loader and that step.
    """
    batch_size = config.pretrain.batch_size
    synthetic_data = config.data.model_copy(update={"loader": "synthetic"})
    noise = build_loader(source, synthetic_data, config.seed, step.accelerator.device)
    with (
        closing(loader.stream(0, batch_size)) as loaded,
        closing(noise.stream(0, batch_size)) as synthetic,
        closing(loader.stream(0, batch_size)) as trained,
    ):
        measured = [
            (
                measure_round(loaded, None, seconds),
                measure_round(synthetic, step, seconds),
                measure_round(trained, step, seconds),
            )
            for _ in range(rounds + 1)
        ]
    alone, stepping, both = zip(*measured[1:], strict=True)  # the first is the warm-up
    parts = {"loader": alone, "step": stepping, "e2e": both}
    rates = {name: [r.images / r.seconds for r in found] for name, found in parts.items()}
    decoding = [r.cpu / r.images for r in alone]
    left = rates["step"]
    if step.accelerator.device.type == "cpu":  # the step shares the cores with the loader
        pairs = zip(left, decoding, strict=True)
        left = [1 / (1 / rate + cpu / usable_cores()) for rate, cpu in pairs]
    slower = map(min, rates["loader"], left)
    return {
        "rates": {name: _spread(found) for name, found in rates.items()},
        "waiting": _spread([r.waited / r.seconds for r in both]),
        "loader_cpu_s_per_image": _spread(decoding),
        "step_on_the_cores_left": _spread(left),
        "binding": min(("step", "loader"), key=lambda name: median(rates[name])),
        "e2e_share_of_binding": _spread([a / b for a, b in zip(rates["e2e"], slower, strict=True)]),
    }


def measure_round(batches: Iterator[Batch], step: TrainStep | None, seconds: float) -> Round:
    """Run batches for at least `seconds`, and wait for the device, after some that warm up.

    Args:
        batches: From a loader.
        step: The training step; None: measure the loader alone.
        seconds: Shortest duration.
    """
    for number in range(_WARM_UP):
        batch = next(batches)
        if step is not None:
            step(number, batch)
    if step is not None:
        step.read()
    count, waited, spent = 0, 0.0, 0.0
    cpu, start = time.process_time(), time.perf_counter()
    while spent < seconds:
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        count += len(batch.images)
        if step is not None:
            step(count, batch)
        spent = time.perf_counter() - start
    if step is not None:
        step.read()  # waits: the steps must be done. Not after each: training does not wait there
        spent = time.perf_counter() - start
    return Round(count, spent, waited, time.process_time() - cpu)
