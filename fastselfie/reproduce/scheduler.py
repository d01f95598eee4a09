"""Which runs are done and which may begin: a group's last runs wait for its learning rate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from fastselfie.errors import UserError
from fastselfie.reproduce.protocol import Group, Plan, Run
from fastselfie.runs.folder import read_facts
from fastselfie.stage_names import PRETRAIN, SUPERVISED
from fastselfie.training.checkpoint import LATEST, step_paths

RUNS, RESULT = "runs", "result.json"

Result = dict[str, Any]


class Choice(NamedTuple):
    """The rate of a group. scores: accuracy of each rate tried, None where a run diverged.

    at_edge: no rate beyond it was tried, and one may be better.
    """

    lr: float
    scores: dict[float, float | None]
    at_edge: bool


class Agenda:
    """All runs of a plan, over what `out` has of them already; reading alone.

    control: another reproduction, whose supervised runs count as done.
    """

    def __init__(self, plan: Plan, out: Path, control: Path | None = None) -> None:
        self.plan, self.out = plan, out
        self._control = control
        self.results: dict[Run, Result] = {}
        self._begun: set[Run] = set()
        self._read()

    @property
    def total(self) -> int:
        """Runs that are known of by now: a search may come to need more."""
        return sum(len(self.searches(g)) + len(self.plan.seeds) for g in self.plan.groups)

    @property
    def left(self) -> int:
        """Of `total`, those without a result."""
        return self.total - len(self.results)

    def next(self) -> Run | None:
        """A run to begin now; None where there is none, or none before others have ended."""
        found = next((run for run in self.runs() if run not in self._begun), None)
        if found is not None:
            self._begun.add(found)
        return found

    def finish(self, run: Run, result: Result) -> None:
        self.results[run] = result

    def choice(self, group: Group) -> Choice | None:
        """The best rate of a finished search, the lower of two as good; None before its end.

        Raises:
            UserError: no rate is left, as all diverged.
        """
        grid = self._rates(group)
        if len(grid) == 1:
            return Choice(grid[0], {}, False)
        scores = self._scores(group, grid)
        if scores is None:
            return None
        best = _best(scores)
        if best is None:
            raise UserError(
                f"--labels {group.labels:g}, {group.arm}: training diverged at every rate tried, "
                f"from {grid[0]:g} on: give reproduce.grid lower ones and another --out, with "
                f"{self.out / PRETRAIN} copied into it"
            )
        return Choice(best, scores, best in (grid[0], grid[-1]))

    def _rates(self, group: Group) -> tuple[float, ...]:
        """The grid, and beyond it as far as the results so far and reproduce.widen ask for."""
        grid = self.plan.grid
        for _ in range(self.plan.config.reproduce.widen if len(grid) > 1 else 0):
            scores = self._scores(group, grid)
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

    def searches(self, group: Group) -> list[Run]:
        """Those of the grid, and beyond it as far as is known by now."""
        grid = self._rates(group)
        return [run for lr in grid for run in self.plan.search(group, lr)] if len(grid) > 1 else []

    def finals(self, group: Group) -> list[Result]:
        """Results of a finished group's last runs, in the order of the seeds."""
        choice = self.choice(group)
        assert choice is not None
        return [self.results[run] for run in self.plan.finals(group, choice.lr)]

    def _scores(self, group: Group, grid: Sequence[float]) -> dict[float, float | None] | None:
        """Mean over the splits at each rate; None before all are measured.

        Rounded to 9 digits: as floats 0.40 and 0.54 have a higher mean than 0.48 and 0.46.
        """
        runs = {lr: self.plan.search(group, lr) for lr in grid}
        if any(run not in self.results for each in runs.values() for run in each):
            return None
        found = {lr: [self.results[run]["top1"] for run in each] for lr, each in runs.items()}
        return {lr: None if None in top1 else round(mean(top1), 9) for lr, top1 in found.items()}

    def runs(self) -> Iterator[Run]:
        """Those that are known by now, in the plan's order."""
        for group in self.plan.groups:
            yield from self.searches(group)
            choice = self.choice(group)
            if choice is not None:
                yield from self.plan.finals(group, choice.lr)

    def tidy(self) -> None:
        """Drop checkpoints of finished runs, where a kill came between."""
        for run in self.results:
            drop_checkpoints(self.out / RUNS / run.name, run)

    def _read(self) -> None:
        """Take the finished runs from the disk. A search's end makes others known."""
        while (run := self.next()) is not None:
            found = self._result_of(run)
            if found is not None:
                self.results[run] = found
        self._begun = set(self.results)

    def _result_of(self, run: Run) -> Result | None:
        folders = [self.out]
        if self._control is not None and run.group.arm == SUPERVISED:
            folders.append(self._control)
        found = (read_facts(folder / RUNS / run.name / RESULT) for folder in folders)
        # A last run's folder has no rate in its name, and another search may have chosen one.
        return next((result for result in found if result.get("lr") == run.lr), None)


def _best(scores: Mapping[float, float | None]) -> float | None:
    """The rate with the highest score, the first of equals; None where all diverged."""
    good = {lr: score for lr, score in scores.items() if score is not None}
    return max(good, key=lambda lr: good[lr], default=None)


def _rounded(lr: float) -> float:
    return float(f"{lr:.3g}")


def drop_checkpoints(folder: Path, run: Run) -> None:
    """Of a finished run: a search's all, and of a last run what is older than its newest."""
    steps = list(step_paths(folder).values())
    if run.split is None:
        old = steps[1:]
    else:
        old = [*steps, folder / LATEST, *folder.glob("nonfinite-*.pt")]
    for path in old:
        path.unlink(missing_ok=True)
