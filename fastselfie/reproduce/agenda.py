"""Which runs are done and which may begin: a group's last runs wait for its learning rate."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from fastselfie.checkpoint import LATEST, step_paths
from fastselfie.errors import UserError
from fastselfie.reproduce.plan import Group, Plan, Run

RUNS, RESULT = "runs", "result.json"

Result = dict[str, Any]


class Choice(NamedTuple):
    """The rate of a group. scores: accuracy of each rate of the grid, None where a run diverged.

    at_edge: the grid ends there, so a rate outside may be better.
    """

    lr: float
    scores: dict[float, float | None]
    at_edge: bool


class Agenda:
    """All runs of a plan, over what `out` has of them already."""

    def __init__(self, plan: Plan, out: Path) -> None:
        self.plan, self.out = plan, out
        self.results: dict[Run, Result] = {}
        self._begun: set[Run] = set()
        self._read()

    @property
    def total(self) -> int:
        groups = self.plan.groups
        return sum(len(self.plan.searches(g)) + len(self.plan.seeds) for g in groups)

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
        searches, grid = self.plan.searches(group), self.plan.grid
        if not searches:
            return Choice(grid[0], {}, False)
        if any(run not in self.results for run in searches):
            return None
        scores = {lr: self._score([r for r in searches if r.lr == lr]) for lr in grid}
        good = {lr: score for lr, score in scores.items() if score is not None}
        if not good:
            raise UserError(
                f"--labels {group.labels:g}, {group.arm}: training diverged at every rate of "
                f"reproduce.grid, from {grid[0]:g} on: give lower ones, or finetune.clip_grad_norm"
            )
        best = max(good, key=lambda lr: good[lr])  # the first of equals
        return Choice(best, scores, best in (grid[0], grid[-1]))

    def finals(self, group: Group) -> list[Result]:
        """Results of a finished group's last runs, in the order of the seeds."""
        choice = self.choice(group)
        assert choice is not None
        return [self.results[run] for run in self.plan.finals(group, choice.lr)]

    def _score(self, runs: list[Run]) -> float | None:
        found = [self.results[run]["top1"] for run in runs]
        return None if None in found else mean(found)

    def runs(self) -> Iterator[Run]:
        """Those that are known by now, in the plan's order."""
        for group in self.plan.groups:
            yield from self.plan.searches(group)
            choice = self.choice(group)
            if choice is not None:
                yield from self.plan.finals(group, choice.lr)

    def _read(self) -> None:
        """Take the finished runs from the disk. A search's end makes others known."""
        while (run := self.next()) is not None:
            path = self.out / RUNS / run.name / RESULT
            if path.exists():
                self.results[run] = json.loads(path.read_text(encoding="utf-8"))
                drop_checkpoints(path.parent, run)  # a kill may have come between
        self._begun = set(self.results)


def drop_checkpoints(folder: Path, run: Run) -> None:
    """Of a finished run: a search's all, and of a last run what is older than its newest."""
    steps = list(step_paths(folder).values())
    if run.split is None:
        old = steps[1:]
    else:
        old = [*steps, folder / LATEST, *folder.glob("nonfinite-*.pt")]
    for path in old:
        path.unlink(missing_ok=True)
