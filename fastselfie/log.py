"""What a run says while it goes: a progress bar, log.jsonl, TensorBoard, and the rates in them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from fastselfie.atomic import write_atomically

# Told that there is a new line in the log.
Show = Callable[[], None]

console = Console(stderr=True, highlight=False)


class RunLog:
    """Log of one stage, a context manager: `folder`/log.jsonl, TensorBoard files, a bar.

    Opening it for a run resumed at `start` drops the lines after that step, which the run will
    write again. leads: whether this process writes; where it does not, lines go nowhere. on_error:
    of a line that the disk refuses, see `CheckpointConfig.on_error`. show: called after each line.
    """

    def __init__(
        self,
        folder: Path,
        title: str,
        steps: int,
        start: int,
        leads: bool = True,
        on_error: str = "stop",
        show: Show = lambda: None,
    ) -> None:
        self.path = folder / "log.jsonl" if leads else Path(os.devnull)
        self.title = title
        self.on_error = on_error
        self.show = show
        self._refused = False
        if leads:
            folder.mkdir(parents=True, exist_ok=True)
            # What begins at 0 measures that step again too.
            kept = [line for line in read_log(self.path) if start and line["step"] <= start]
            write_atomically(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = open(self.path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115
        self._board = _tensorboard(folder / "tensorboard", start) if leads else None
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
        with self._bearing():
            self._file.close()  # which writes what was refused, where there is room again
        with self._bearing():
            if self._board is not None:
                self._board.close()

    def advance(self, step: int) -> None:
        self._progress.update(self._task, completed=step)

    def write(self, step: int, **values: float) -> None:
        """One line of numbers: to the file, to TensorBoard, and beside the bar."""
        line = {"step": step, "time": time.time(), **values}
        with self._bearing():
            self._file.write(json.dumps(line, allow_nan=False) + "\n")
        with self._bearing():
            if self._board is not None:
                for name, value in values.items():
                    self._board.add_scalar(name, value, step)
        note = "  ".join(_shown(name, value) for name, value in values.items())
        if "images_per_s" in values:  # beside the bar stands how training goes
            self._progress.update(self._task, completed=step, note=note)
        if not console.is_terminal:
            say(f"{self.title} step {step}  {note}")
        self.show()

    @contextmanager
    def _bearing(self) -> Iterator[None]:
        """An error of the disk ends the run, or under continue is told once."""
        try:
            yield
        except OSError as error:
            if self.on_error == "stop":
                raise OSError(error.errno, error.strerror, str(self.path)) from error
            if not self._refused:
                say(
                    f"warning: {self.path}: {error.strerror}: lines are missing in it, "
                    "checkpoint.on_error is continue"
                )
            self._refused = True


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


def say(text: str) -> None:
    """A line for the person who watches, as it is: in a terminal wrapped at words, else whole."""
    console.print(escape(text), soft_wrap=not console.is_terminal)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log.jsonl; a last line that a kill cut short is left out."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def _tensorboard(folder: Path, start: int) -> Any:
    """A SummaryWriter where tensorboard is installed, else None."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=start + 1)


def _shown(name: str, value: float) -> str:
    """A number in few characters: a line of the bar is 80 wide."""
    if name == "images_per_s":
        return f"{value:,.0f} img/s" if value >= 10 else f"{value:.2g} img/s"
    if name == "waiting":
        return f"wait {value:.0%}"
    if name == "accuracy":
        return f"right {value:.0%}"
    return f"{name} {value:.3g}"
