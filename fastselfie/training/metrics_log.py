"""What a run says while it goes: a progress bar, log.jsonl, boards, and the rates in them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from fastselfie.config import Config
from fastselfie.system.console import console, say
from fastselfie.system.files import write_atomically
from fastselfie.training.disk_errors import DiskErrors
from fastselfie.training.trackers import open_trackers

# Told that there is a new line in the log.
Show = Callable[[], None]


# What of a line stands beside the bar, which with it is 80 wide.
_NOTED = ("loss", "accuracy", "images_per_s", "waiting", "skipped_steps", "skipped")


class RunLog:
    """Log of one stage, a context manager: `folder`/log.jsonl, TensorBoard, W&B, a bar.

    Opening it for a run resumed at `start` drops the lines that the run will write again: those
    after that step and, where the evaluation of `start` is `evaluation_pending`, that one's.
    is_main: whether this process writes; where it does not, lines go nowhere. config: the run's,
    for W&B and for what a line means that the disk refuses; None: neither. show: called after each
    line.
    """

    def __init__(
        self,
        folder: Path,
        title: str,
        steps: int,
        start: int,
        is_main: bool = True,
        evaluation_pending: bool = False,
        config: Config | None = None,
        show: Show = lambda: None,
    ) -> None:
        self.path = folder / "log.jsonl" if is_main else Path(os.devnull)
        self.title = title
        on_error = "stop" if config is None else config.checkpoint.on_error
        self._disk_errors = DiskErrors(on_error, self.path, "lines are missing in it")
        self._show = show
        if is_main:
            folder.mkdir(parents=True, exist_ok=True)
            # What begins at 0 measures that step again too.
            again = evaluation_pending or start == 0
            kept = [
                line
                for line in read_log(self.path)
                if line["step"] < start
                or (line["step"] == start and not (again and "heldout_loss" in line))
            ]
            write_atomically(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = open(self.path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115
        self._boards = open_trackers(folder, title, start, config, say) if is_main else []
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=8),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task(title, total=steps, completed=start, note="")

    def __enter__(self) -> RunLog:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()
        with self._disk_errors:
            self._file.close()  # which writes what was refused, where there is room again
        for board in self._boards:
            with self._disk_errors:
                board.close(failed=error is not None)

    def advance(self, step: int) -> None:
        self._progress.update(self._task, completed=step)

    def write(self, step: int, **values: float) -> None:
        """One line of numbers: to the file, to the boards, and beside the bar or above it."""
        line = {"step": step, "time": time.time(), **values}
        with self._disk_errors:
            self._file.write(json.dumps(line, allow_nan=False) + "\n")
        for board in self._boards:
            with self._disk_errors:
                board.scalars(values, step)
        trains = "images_per_s" in values
        if trains:
            note = " ".join(_shown(name, values[name]) for name in _NOTED if name in values)
            self._progress.update(self._task, completed=step, note=note)
        if not (trains and console.is_terminal):
            said = "  ".join(_shown(name, value) for name, value in values.items())
            say(f"{self.title} step {step}  {said}")
        self._show()

    def picture(self, step: int) -> None:
        """The picture of `step`, if one was taken, on the boards."""
        path = picture_path(self.path.parent, step)
        if not path.exists():
            return
        for board in self._boards:
            with self._disk_errors:
                board.picture(path, step)


class Window:
    """The time between two lines of the log, and how much of it went by waiting for data."""

    def __init__(self, step: int) -> None:
        self._begin(step)

    def _begin(self, step: int) -> None:
        self._step, self._waited, self._since = step, 0.0, time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        asked = time.perf_counter()
        yield
        self._waited += time.perf_counter() - asked

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is not training, evaluation for one, does not count."""
        asked = time.perf_counter()
        yield
        self._since += time.perf_counter() - asked

    def age(self) -> float:
        """Seconds since it began."""
        return time.perf_counter() - self._since

    def close(self, step: int, batch_size: int) -> dict[str, float]:
        """Images a second and the share of waiting since the last line; begins the next."""
        spent = self.age()
        rate, waiting = (step - self._step) * batch_size / spent, self._waited / spent
        self._begin(step)
        return {"images_per_s": rate, "waiting": waiting}


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log.jsonl; one that a kill cut short, or a disk damaged, is left out."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(json.JSONDecodeError):
            line = json.loads(text)
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                lines.append(line)
    return lines


def picture_path(folder: Path, step: int) -> Path:
    """Where the picture that a stage in `folder` takes after `step` stands."""
    return folder / "pictures" / f"{step:07d}.png"


def _shown(name: str, value: float) -> str:
    """A number in few characters: a line of the bar is 80 wide."""
    if name == "images_per_s":
        return f"{value:,.0f} img/s" if value >= 10 else f"{value:.2g} img/s"
    if name == "waiting":
        return f"wait {value:.0%}"
    if name == "accuracy":
        return f"right {value:.0%}"
    return f"{name} {value:.3g}"
