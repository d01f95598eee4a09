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


class Throughput(NamedTuple):
    """Measured rates; each list has a value per round.

    Attributes:
        loader: Images per second of the loader alone.
        step: Images per second of the step alone.
        e2e: Images per second of both together.
        waiting: Share of the end-to-end time that is spent waiting for data.
        loader_cpu: CPU seconds of this process per image, with the loader alone.
        cores: Number of cores that loader and step share; None if the step has its own device.
    """

    loader: list[float]
    step: list[float]
    e2e: list[float]
    waiting: list[float]
    loader_cpu: list[float]
    cores: int | None

    def summary(self) -> dict[str, Any]:
        """Return median, min and max of each rate, and the bottleneck."""
        parts = {"loader": self.loader, "step": self.step, "e2e": self.e2e}
        return {
            "rates": {name: _spread(found) for name, found in parts.items()},
            "waiting": _spread(self.waiting),
            "loader_cpu_s_per_image": _spread(self.loader_cpu),
            "step_on_the_cores_left": _spread(self.left),
            "binding": self.binding,
            "e2e_share_of_binding": _spread(self.shares),
        }

    @property
    def left(self) -> list[float]:
        """Images per second of the step on the cores that decoding leaves."""
        if self.cores is None:
            return self.step
        pairs = zip(self.step, self.loader_cpu, strict=True)
        return [1 / (1 / step + decoding / self.cores) for step, decoding in pairs]

    @property
    def binding(self) -> str:
        """The bottleneck: "loader" or "step"."""
        return "loader" if median(self.loader) < median(self.step) else "step"

    @property
    def shares(self) -> list[float]:
        """End-to-end rate as a share of the slower part, on the cores left to it."""
        rounds = zip(self.e2e, self.loader, self.left, strict=True)
        return [both / min(loader, left) for both, loader, left in rounds]


def _spread(values: list[float]) -> dict[str, float]:
    three = {"median": median(values), "min": min(values), "max": max(values)}
    return {name: float(f"{value:.5g}") for name, value in three.items()}


def measure_rates(
    config: Config, source: Source, loader: Loader, step: TrainStep, rounds: int, seconds: float
) -> Throughput:
    """Measure alternating rounds, after one that warms up.

    Args:
        config: Config of the run.
        source: The images.
        loader: Of `source`.
        step: The training step.
        rounds: Number of rounds.
        seconds: Shortest duration of each measurement.
    """
    batch_size = config.pretrain.batch_size
    synthetic_data = config.data.model_copy(update={"loader": "synthetic"})
    noise = build_loader(source, synthetic_data, config.seed, step.accelerator.device)
    on_cpu = step.accelerator.device.type == "cpu"
    rates = Throughput([], [], [], [], [], usable_cores() if on_cpu else None)
    with (
        closing(loader.stream(0, batch_size)) as loaded,
        closing(noise.stream(0, batch_size)) as synthetic,
        closing(loader.stream(0, batch_size)) as trained,
    ):
        for number in range(rounds + 1):
            alone = _round(loaded, None, seconds)
            stepping = _round(synthetic, step, seconds)
            both = _round(trained, step, seconds)
            if number:  # the first is the warm-up
                rates.loader.append(alone.images / alone.seconds)
                rates.loader_cpu.append(alone.cpu / alone.images)
                rates.step.append(stepping.images / stepping.seconds)
                rates.e2e.append(both.images / both.seconds)
                rates.waiting.append(both.waited / both.seconds)
    return rates


class _Round(NamedTuple):
    images: int
    seconds: float
    waited: float
    cpu: float


def _round(batches: Iterator[Batch], step: TrainStep | None, seconds: float) -> _Round:
    """Run batches for at least `seconds`, waiting for the device."""
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
            step.read()  # waits: the clock must not run ahead of a GPU
        spent = time.perf_counter() - start
    return _Round(count, spent, waited, time.process_time() - cpu)
