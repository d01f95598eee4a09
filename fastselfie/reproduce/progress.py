"""Report the progress of a reproduction in the terminal."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType

from rich.live import Live
from rich.table import Table
from rich.text import Text

from fastselfie.report.render import format_duration
from fastselfie.reproduce.protocol import Trial
from fastselfie.reproduce.scheduler import Scheduler
from fastselfie.system.console import console, messages, say

_EVERY = 5.0  # seconds between two looks at the logs of running trials
_TAIL = 4096  # bytes, more than the last lines of a log have


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


class ProgressTable:
    """A live table of the trainings that run on other machines, read from their logs.

    A context manager. Shows nothing unless standard error is a terminal.

    Args:
        out: Folder of the reproduction.
        title: What runs.
    """

    def __init__(self, out: Path, title: str) -> None:
        self._out, self._title = out, title
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._begun: dict[str, tuple[float, int]] = {}  # when and at which step it was first seen
        self._due = 0.0

    def __enter__(self) -> ProgressTable:
        if console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, running: Iterable[tuple[str, int]], left: str = "") -> None:
        """Show the trainings, unless the last look at their logs was a moment ago.

        Args:
            running: Folder, inside that of the reproduction, and number of steps of each.
            left: What to say of those that wait.
        """
        if not console.is_terminal or time.monotonic() < self._due:
            return
        table = Table(title=self._title, caption=left or None, show_edge=False)
        for name in ("training", "step", "of", "left"):
            table.add_column(name, justify="left" if name == "training" else "right")
        for name, steps in running:
            if (step := last_step(self._out / name)) is not None:
                table.add_row(Text(name), f"{step:,}", f"{steps:,}", self._left(name, step, steps))
        self._live.update(table, refresh=True)
        self._due = time.monotonic() + _EVERY

    def _left(self, name: str, step: int, steps: int) -> str:
        now = time.monotonic()
        since, first = self._begun.setdefault(name, (now, step))
        if step <= first:  # seen once, or it goes on from an earlier checkpoint
            self._begun[name] = (since, min(first, step))
            return ""
        return format_duration((steps - step) * (now - since) / (step - first))


def last_step(folder: Path) -> int | None:
    """Return the step of the last line of a log; None if the training has not begun."""
    try:
        with open(folder / "log.jsonl", "rb") as file:
            file.seek(max(0, file.seek(0, 2) - _TAIL))
            lines = file.read().splitlines()
        return int(json.loads(lines[-1])["step"])
    except (OSError, ValueError, KeyError, IndexError):  # none yet, or a line is being written
        return None
