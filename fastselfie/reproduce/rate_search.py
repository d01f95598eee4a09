"""The learning-rate search of an arm: the rates to try, widened beyond the grid, and the best."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from fastselfie.errors import UserError
from fastselfie.reproduce.protocol import Arm, Protocol, Trial
from fastselfie.stage_names import PRETRAIN

Result = dict[str, Any]


def lower_the_rates(out: Path) -> str:
    """Say how to search lower rates without pretraining again. `out`: folder of a reproduction."""
    return (
        f"set lower rates in reproduce.grid, copy {out / PRETRAIN} to a new folder, and pass that "
        "as --out"
    )


class Choice(NamedTuple):
    """The learning rate of an arm.

    Attributes:
        lr: The best rate.
        scores: Accuracy at each rate tried; None where a trial diverged.
        at_edge: The best rate is the lowest or highest tried, so one beyond it may be better.
    """

    lr: float
    scores: dict[float, float | None]
    at_edge: bool


class RateSearch:
    """The search of an arm, as far as the results go.

    If the best rate is at an end of the grid, the grid is widened there by its ratio at that end,
    up to reproduce.widen times. If training diverged at every rate, it is widened downwards.

    Args:
        protocol: The protocol of the search.
        arm: The arm.
        results: The results of finished trials.
        out: The folder of the reproduction.

    Attributes:
        rates: The grid, widened as far as the results ask for.
    """

    def __init__(
        self, protocol: Protocol, arm: Arm, results: Mapping[Trial, Result], out: Path
    ) -> None:
        self._protocol, self._arm, self._results, self._out = protocol, arm, results, out
        self.rates = protocol.grid
        for _ in range(protocol.config.reproduce.widen if len(self.rates) > 1 else 0):
            scores = self._scores()
            if scores is None:
                break
            best, rates = _best(scores), self.rates
            if best is None or best == rates[0]:
                self.rates = (_rounded(rates[0] ** 2 / rates[1]), *rates)
            elif best == rates[-1]:
                self.rates = (*rates, _rounded(rates[-1] ** 2 / rates[-2]))
            else:
                break

    @property
    def trials(self) -> list[Trial]:
        """The search trials known so far; none if there is a single rate."""
        return self._protocol.search_trials(self._arm, self.rates)

    def choice(self) -> Choice | None:
        """Return the best rate of a finished search, the lower of equals; None if unfinished.

        Raises:
            UserError: Training diverged at every rate.
        """
        if len(self.rates) == 1:
            return Choice(self.rates[0], {}, False)
        scores = self._scores()
        if scores is None:
            return None
        best = _best(scores)
        if best is None:
            raise UserError(
                f"--labels {self._arm.labels:g}, {self._arm.start}: training diverged at every "
                f"rate tried, from {self.rates[0]:g} on: {lower_the_rates(self._out)}"
            )
        return Choice(best, scores, best in (self.rates[0], self.rates[-1]))

    def _scores(self) -> dict[float, float | None] | None:
        """Return the mean accuracy over the splits at each rate; None before all are measured.

        Means are rounded to 9 digits: as floats, 0.40 and 0.54 have a higher mean than 0.48 and
        0.46.
        """
        top1: dict[float, list[Any]] = {lr: [] for lr in self.rates}
        for trial in self.trials:
            if trial not in self._results:
                return None
            top1[trial.lr].append(self._results[trial]["top1"])
        return {lr: None if None in each else round(mean(each), 9) for lr, each in top1.items()}


def _best(scores: Mapping[float, float | None]) -> float | None:
    """Return the rate with the highest score, the first of equals; None if all diverged."""
    good = {lr: score for lr, score in scores.items() if score is not None}
    return max(good, key=lambda lr: good[lr], default=None)


def _rounded(lr: float) -> float:
    return float(f"{lr:.3g}")
