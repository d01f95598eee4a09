"""Report the progress of a reproduction in the terminal."""

from __future__ import annotations

import time
from collections.abc import Callable

from fastselfie.report.render import format_duration
from fastselfie.reproduce.protocol import Trial
from fastselfie.reproduce.scheduler import Scheduler
from fastselfie.system.console import messages, say


def progress_reporter(scheduler: Scheduler) -> Callable[[Trial], None]:
    """Return a function that prints the result of a finished trial, and the time that is left."""
    start, done_before = time.monotonic(), len(scheduler.results)
    if done_before:
        say(f"{done_before} of {scheduler.total} trials are done")

    def report(trial: Trial) -> None:
        done, total = len(scheduler.results), scheduler.total
        result = scheduler.results[trial]
        kind = f"seed {trial.seed}" if trial.split is None else f"split {trial.split}"
        top1 = "diverged" if result["top1"] is None else f"top-1 {result['top1']:.1%}"
        per_trial = (time.monotonic() - start) / (done - done_before)
        left = f", about {format_duration(per_trial * (total - done))} left" if done < total else ""
        with messages(shown=True):
            say(
                f"{trial.arm.labels:g}% {trial.arm.start}, rate {trial.lr:g}, {kind}: {top1}; "
                f"{done} of {total}{left}"
            )

    return report
