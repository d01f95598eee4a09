"""Decide which trial runs next: the seed runs of an arm wait for its learning-rate search."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from fastselfie.errors import UserError
from fastselfie.reproduce.protocol import Arm, Protocol, Trial
from fastselfie.runs.folder import read_facts
from fastselfie.stage_names import PRETRAIN, SUPERVISED
from fastselfie.training.checkpoint import LATEST, step_paths

RUNS, RESULT = "runs", "result.json"

Result = dict[str, Any]


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


class Scheduler:
    """All trials of a protocol, with the results so far. It only reads files.

    Args:
        protocol: Which trials there are.
        out: Folder of the reproduction; trials that have a result in it are done.
        control: Folder of another reproduction, whose supervised trials count as done too.
    """

    def __init__(self, protocol: Protocol, out: Path, control: Path | None = None) -> None:
        self.protocol, self.out = protocol, out
        self._control = control
        self.results: dict[Trial, Result] = {}
        self._started: set[Trial] = set()
        while (trial := self.next()) is not None:  # the end of a search adds trials
            if (result := self._result_of(trial)) is not None:
                self.results[trial] = result
        self._started = set(self.results)

    @property
    def total(self) -> int:
        """Number of trials known so far; a search may add some."""
        seeds = len(self.protocol.seeds)
        return sum(len(self.search_trials(arm)) + seeds for arm in self.protocol.arms)

    @property
    def left(self) -> int:
        """Number of known trials without a result."""
        return self.total - len(self.results)

    def next(self) -> Trial | None:
        """Start the next trial; None if there is none, or none before others have finished."""
        found = next((trial for trial in self.trials() if trial not in self._started), None)
        if found is not None:
            self._started.add(found)
        return found

    def finish(self, trial: Trial, result: Result) -> None:
        """Record the result of a trial."""
        self.results[trial] = result

    def choice(self, arm: Arm) -> Choice | None:
        """Return the best rate of a finished search, the lower of equals; None if unfinished.

        Raises:
            UserError: Training diverged at every rate.
        """
        grid = self._rates(arm)
        if len(grid) == 1:
            return Choice(grid[0], {}, False)
        scores = self._scores(arm, grid)
        if scores is None:
            return None
        best = _best(scores)
        if best is None:
            raise UserError(
                f"--labels {arm.labels:g}, {arm.start}: training diverged at every rate tried, "
                f"from {grid[0]:g} on: set lower rates in reproduce.grid, copy "
                f"{self.out / PRETRAIN} to a new folder, and give that as --out"
            )
        return Choice(best, scores, best in (grid[0], grid[-1]))

    def search_trials(self, arm: Arm) -> list[Trial]:
        """Return the search trials known so far: the grid and its extensions."""
        grid = self._rates(arm)
        if len(grid) == 1:
            return []
        return [trial for lr in grid for trial in self.protocol.search_trials(arm, lr)]

    def seed_results(self, arm: Arm) -> list[Result]:
        """Return the results of a finished arm's seed runs, in the order of the seeds."""
        choice = self.choice(arm)
        assert choice is not None
        return [self.results[trial] for trial in self.protocol.seed_runs(arm, choice.lr)]

    def trials(self) -> Iterator[Trial]:
        """Yield the trials known so far, in the order of the protocol."""
        for arm in self.protocol.arms:
            yield from self.search_trials(arm)
            choice = self.choice(arm)
            if choice is not None:
                yield from self.protocol.seed_runs(arm, choice.lr)

    def drop_old_checkpoints(self) -> None:
        """Drop checkpoints of finished trials, which remain if a kill came in between."""
        for trial in self.results:
            drop_checkpoints(self.out / RUNS / trial.name, trial)

    def _rates(self, arm: Arm) -> tuple[float, ...]:
        """Return the grid, extended as far as the results so far and reproduce.widen ask for."""
        grid = self.protocol.grid
        max_grid_extensions = self.protocol.config.reproduce.widen if len(grid) > 1 else 0
        for _ in range(max_grid_extensions):
            scores = self._scores(arm, grid)
            if scores is None:
                break
            best = _best(scores)
            if best is None or best == grid[0]:
                grid = (_rounded(grid[0] ** 2 / grid[1]), *grid)
            elif best == grid[-1]:
                grid = (*grid, _rounded(grid[-1] ** 2 / grid[-2]))
            else:
                break
        return grid

    def _scores(self, arm: Arm, grid: Sequence[float]) -> dict[float, float | None] | None:
        """Return the mean accuracy over the splits at each rate; None before all are measured.

        Means are rounded to 9 digits: as floats, 0.40 and 0.54 have a higher mean than 0.48 and
        0.46.
        """
        trials = {lr: self.protocol.search_trials(arm, lr) for lr in grid}
        if any(trial not in self.results for each in trials.values() for trial in each):
            return None
        found = {lr: [self.results[trial]["top1"] for trial in each] for lr, each in trials.items()}
        return {lr: None if None in top1 else round(mean(top1), 9) for lr, top1 in found.items()}

    def _result_of(self, trial: Trial) -> Result | None:
        folders = [self.out]
        if self._control is not None and trial.arm.start == SUPERVISED:
            folders.append(self._control)
        found = (read_facts(folder / RUNS / trial.name / RESULT) for folder in folders)
        # The folder of a seed run has no rate in its name; an earlier search may have chosen one.
        return next((result for result in found if result.get("lr") == trial.lr), None)


def _best(scores: Mapping[float, float | None]) -> float | None:
    """Return the rate with the highest score, the first of equals; None if all diverged."""
    good = {lr: score for lr, score in scores.items() if score is not None}
    return max(good, key=lambda lr: good[lr], default=None)


def _rounded(lr: float) -> float:
    return float(f"{lr:.3g}")


def drop_checkpoints(folder: Path, trial: Trial) -> None:
    """Delete the checkpoints of a finished trial; a seed run keeps its newest."""
    steps = list(step_paths(folder).values())
    if trial.split is None:
        old = steps[1:]
    else:
        old = [*steps, folder / LATEST, *folder.glob("nonfinite-*.pt")]
    for path in old:
        path.unlink(missing_ok=True)
