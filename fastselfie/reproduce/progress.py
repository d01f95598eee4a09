"""Report the progress of a reproduction in the terminal."""

from __future__ import annotations

import time

from fastselfie.report.render import format_duration
from fastselfie.reproduce.protocol import Trial
from fastselfie.reproduce.scheduler import Scheduler
from fastselfie.system.console import messages, say


class ProgressReporter:
    """Prints a line for each finished trial, with the time that is left."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._start, self._done_before = time.monotonic(), len(scheduler.results)
        if self._done_before:
            say(f"{self._done_before} of {scheduler.total} trials are done")

    def report(self, trial: Trial) -> None:
        """Print the result of a finished trial."""
        done, total = len(self._scheduler.results), self._scheduler.total
        result = self._scheduler.results[trial]
        kind = f"seed {trial.seed}" if trial.split is None else f"split {trial.split}"
        top1 = "diverged" if result["top1"] is None else f"top-1 {result['top1']:.1%}"
        per_trial = (time.monotonic() - self._start) / (done - self._done_before)
        left = f", about {format_duration(per_trial * (total - done))} left" if done < total else ""
        with messages(shown=True):
            say(
                f"{trial.arm.labels:g}% {trial.arm.start}, rate {trial.lr:g}, {kind}: {top1}; "
                f"{done} of {total}{left}"
            )
