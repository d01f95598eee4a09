"""What the person who waits for hundreds of runs is told."""

from __future__ import annotations

import time
from dataclasses import dataclass

from fastselfie.report.render import shown_time
from fastselfie.reproduce.protocol import Run
from fastselfie.reproduce.scheduler import Agenda
from fastselfie.system.console import console, say


@dataclass
class Teller:
    """Says a line for each run that has ended."""

    agenda: Agenda

    def __post_init__(self) -> None:
        self.began, self.before = time.monotonic(), len(self.agenda.results)
        if self.before:
            say(f"{self.before} of {self.agenda.total} runs are done")

    def __call__(self, run: Run) -> None:
        done, total = len(self.agenda.results), self.agenda.total
        result = self.agenda.results[run]
        kind = f"seed {run.seed}" if run.split is None else f"split {run.split}"
        top1 = "diverged" if result["top1"] is None else f"top-1 {result['top1']:.1%}"
        left = (time.monotonic() - self.began) / (done - self.before) * (total - done)
        quiet, console.quiet = console.quiet, False
        say(
            f"{run.group.labels:g}% {run.group.arm}, rate {run.lr:g}, {kind}: {top1}; "
            f"{done} of {total}" + (f", about {shown_time(left)} left" if done < total else "")
        )
        console.quiet = quiet
