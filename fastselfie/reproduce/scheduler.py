"""Decide which trial runs next: the seed runs of an arm wait for its learning-rate search."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fastselfie.reproduce.protocol import Arm, Protocol, Trial
from fastselfie.reproduce.rate_search import Choice, RateSearch, Result
from fastselfie.runs.folder import read_facts
from fastselfie.stage_names import SUPERVISED

RUNS, RESULT = "runs", "result.json"


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
        return sum(len(self.search(arm).trials) + seeds for arm in self.protocol.arms)

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

    def search(self, arm: Arm) -> RateSearch:
        """Return the learning-rate search of an arm, with the results so far."""
        return RateSearch(self.protocol, arm, self.results, self.out)

    def finished_arm(self, arm: Arm) -> tuple[Choice, list[Result]]:
        """Return the rate of a finished arm, and the results of its seed runs in their order."""
        choice = self.search(arm).choice()
        assert choice is not None
        return choice, [self.results[trial] for trial in self.protocol.seed_runs(arm, choice.lr)]

    def trials(self) -> Iterator[Trial]:
        """Yield the trials known so far, in the order of the protocol."""
        for arm in self.protocol.arms:
            search = self.search(arm)
            yield from search.trials
            choice = search.choice()
            if choice is not None:
                yield from self.protocol.seed_runs(arm, choice.lr)

    def _result_of(self, trial: Trial) -> Result | None:
        result = read_result(self.out, trial)
        if result is None and self._control is not None and trial.arm.start == SUPERVISED:
            return read_result(self._control, trial)
        return result


def read_result(out: Path, trial: Trial) -> Result | None:
    """Return the result of a trial that has finished in `out`; None if it has not."""
    result = read_facts(out / RUNS / trial.name / RESULT)
    # The folder of a seed run has no rate in its name; an earlier search may have chosen one.
    return result if result.get("lr") == trial.lr else None
