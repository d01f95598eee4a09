"""The loader alone, the step alone (on random pixels) and both together: which one binds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from statistics import median
from typing import NamedTuple

from fastselfie.config import Config
from fastselfie.data.loaders import Batch, Loader, SyntheticLoader
from fastselfie.data.sources import Source
from fastselfie.step import TrainStep

_WARM = 3  # batches: as many as a loader has read ahead during the pause


class Rates(NamedTuple):
    """Images a second of each, round by round."""

    loader: list[float]
    step: list[float]
    e2e: list[float]

    @property
    def binding(self) -> str:
        """The slower of loader and step."""
        return "loader" if median(self.loader) < median(self.step) else "step"

    @property
    def share(self) -> float:
        """What both together reach of the one that binds."""
        slower = self.loader if self.binding == "loader" else self.step
        return median(self.e2e) / median(slower)


def measure_rates(
    config: Config, source: Source, loader: Loader, step: TrainStep, rounds: int, seconds: float
) -> Rates:
    """Alternating rounds of at least `seconds`, after one that warms up. loader: of `source`."""
    batch_size = config.pretrain.batch_size
    noise = SyntheticLoader(source, config.data, config.seed, step.machine.device)
    rates = Rates([], [], [])
    with (
        closing(loader.train(0, batch_size, config.patches)) as loaded,
        closing(noise.train(0, batch_size, config.patches)) as synthetic,
        closing(loader.train(0, batch_size, config.patches)) as trained,
    ):
        parts = ((loaded, None), (synthetic, step), (trained, step))
        for number in range(rounds + 1):
            for found, (batches, taken) in zip(rates, parts, strict=True):
                rate = _rate(batches, taken, seconds)
                if number:  # the first is the warm-up
                    found.append(rate)
    return rates


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
