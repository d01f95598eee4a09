"""A stage's log: log.jsonl, the progress bar, the trackers, and the throughput in them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fastselfie.config import Config
from fastselfie.system.console import console, say
from fastselfie.system.files import write_atomically
from fastselfie.training.disk_errors import DiskErrors
from fastselfie.training.trackers import open_trackers

# Called after each new line of the log.
OnLogLine = Callable[[], None]

# The values shown beside the progress bar; with it they fit in 80 columns.
_BESIDE_BAR = ("loss", "accuracy", "images_per_s", "waiting", "skipped_steps", "skipped")


class RunLog:
    """Log of one stage, a context manager: `folder`/log.jsonl, TensorBoard, W&B, a progress bar.

    Opening it drops the lines that a resumed run will write again: those after step `start` and, if
    an evaluation is pending, that of `start`.

    Args:
        folder: the stage's.
        title: the stage's name, for the bar and the lines on the terminal.
        steps: of the whole stage.
        start: whole steps done.
        is_main: whether this rank writes; the lines of the others are dropped.
        evaluation_pending: whether the evaluation after step `start` will be repeated.
        config: the run's, for W&B and `checkpoint.on_error`; None: no W&B, and errors stop the run.
        on_log_line: called after each line.

    Raises:
        OSError: the log cannot be opened.
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
        on_log_line: OnLogLine = lambda: None,
    ) -> None:
        self.path = folder / "log.jsonl" if is_main else Path(os.devnull)
        self.title = title
        on_error = "stop" if config is None else config.checkpoint.on_error
        self._disk_errors = DiskErrors(on_error, self.path, "lines are missing in it")
        self._on_log_line = on_log_line
        if is_main:
            folder.mkdir(parents=True, exist_ok=True)
            # A run that starts at 0 evaluates that step too.
            again = evaluation_pending or start == 0
            kept = [
                line
                for line in read_log(self.path)
                if line["step"] < start
                or (line["step"] == start and not (again and "heldout_loss" in line))
            ]
            write_atomically(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = open(self.path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115
        self._trackers = open_trackers(folder, title, start, config) if is_main else []
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

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._progress.stop()
        with self._disk_errors:
            self._file.close()  # writes buffered lines if the disk has room again
        for tracker in self._trackers:
            with self._disk_errors:
                tracker.close(failed=error is not None)

    def advance(self, step: int) -> None:
        """Move the progress bar to `step`."""
        self._progress.update(self._task, completed=step)

    def write(self, step: int, **values: float) -> None:
        """Write one line of numbers to the file, the trackers and the terminal."""
        line = {"step": step, "time": time.time(), **values}
        with self._disk_errors:
            self._file.write(json.dumps(line, allow_nan=False) + "\n")
        for tracker in self._trackers:
            with self._disk_errors:
                tracker.scalars(values, step)
        trains = "images_per_s" in values
        if trains:
            note = " ".join(_shown(name, values[name]) for name in _BESIDE_BAR if name in values)
            self._progress.update(self._task, completed=step, note=note)
        if not (trains and console.is_terminal):
            said = "  ".join(_shown(name, value) for name, value in values.items())
            say(f"{self.title} step {step}  {said}")
        self._on_log_line()

    def picture(self, step: int) -> None:
        """Send the picture of `step`, if one was taken, to the trackers."""
        path = picture_path(self.path.parent, step)
        if not path.exists():
            return
        for tracker in self._trackers:
            with self._disk_errors:
                tracker.picture(path, step)


class Window:
    """Measures the throughput between two lines of the log, and the share spent waiting for data.

    Args:
        step: whole steps done at the start.
    """

    def __init__(self, step: int) -> None:
        self._step, self._waited, self._since = step, 0.0, time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time of the block as waiting for data."""
        asked = time.perf_counter()
        yield
        self._waited += time.perf_counter() - asked

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time of the block, an evaluation for example, out of the measurement."""
        asked = time.perf_counter()
        yield
        self._since += time.perf_counter() - asked

    def age(self) -> float:
        """Seconds of training since the window began."""
        return time.perf_counter() - self._since

    def close(self, step: int, batch_size: int) -> dict[str, float]:
        """Return images/s and the share of waiting, and begin the next window."""
        spent = self.age()
        rate, waiting = (step - self._step) * batch_size / spent, self._waited / spent
        self._step, self._waited, self._since = step, 0.0, time.perf_counter()
        return {"images_per_s": rate, "waiting": waiting}


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a log.jsonl, without those that are cut short or damaged."""
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
    """Path of the mask-prediction picture of a stage in `folder` after `step`."""
    return folder / "pictures" / f"{step:07d}.png"


def _shown(name: str, value: float) -> str:
    """Format a number in few characters: a line of the progress bar has 80 columns."""
    if name == "images_per_s":
        return f"{value:,.0f} img/s" if value >= 10 else f"{value:.2g} img/s"
    if name in ("waiting", "accuracy"):
        return f"{'wait' if name == 'waiting' else 'right'} {value:.0%}"
    return f"{name} {value:.3g}"
