"""The page of a run: one HTML file with state, figures, pictures and curves."""

from __future__ import annotations

import base64
import shlex
from pathlib import Path
from typing import Any

from fastselfie.report.charts import charts_of
from fastselfie.report.curves import points_of
from fastselfie.report.figures import figures_of, findings_of
from fastselfie.report.render import format_duration, format_time, render
from fastselfie.runs.folder import PAGE, RunFolder
from fastselfie.system.files import write_atomically

REFRESH = 10  # seconds after which an open page reloads
_MAX_PICTURES = 6  # beside the original; keeps a page under 2 MB
_PNG_END = b"IEND\xaeB`\x82"


def run_page(run: RunFolder, running: bool | None = None, refresh: int = REFRESH) -> str:
    """Return the page of one run. It fetches nothing when it is opened.

    Args:
        run: The run.
        running: Whether the run is still training, if the run itself writes the page; None: the
            browser judges by the age of the last log line.
        refresh: Seconds after which the page of an unfinished run reloads.
    """
    state = run.state()
    words = {True: "running", False: "stopped", None: None}
    finished = state.finished and not running
    return render(
        "page.html",
        name=run.path.resolve().name,
        config=run.config,
        yaml=run.config.to_yaml(),
        state=state,
        status="finished" if finished else words[running],
        refresh=None if finished else refresh,
        last=format_time(state.last),
        left=None if state.seconds_left is None else format_duration(state.seconds_left),
        figures=[figure for figure in figures_of(run) if figure.value is not None],
        findings=findings_of(run),
        environment=run.environment,
        charts=charts_of(run),
        pictures=_pictures(run),
        command=shlex.join(
            ("fastselfie", "train", str(run.path / "config.yaml"), "--out", str(run.path))
        ),
    )


def write_page(run: RunFolder, running: bool | None = None) -> Path:
    """Write the page of a run as report.html into its folder.

    Args:
        run: The run.
        running: See `run_page`.

    Returns:
        Path of the page.

    Raises:
        OSError: The page cannot be written.
    """
    path = run.path / PAGE
    write_atomically(path, run_page(run, running))
    return path


def _pictures(run: RunFolder) -> list[dict[str, Any]]:
    """Return the mask-prediction pictures in the order of their steps, the originals last."""
    folder = run.path / "pretrain" / "pictures"
    accuracy = dict(points_of(run.logs["pretrain"], "pretext_accuracy"))
    steps = {int(path.stem): path for path in folder.glob("*.png") if path.stem.isdecimal()}
    shown = sorted(steps)
    if len(shown) > _MAX_PICTURES:  # evenly spaced, with the first and the last
        last = len(shown) - 1
        shown = [shown[round(i * last / (_MAX_PICTURES - 1))] for i in range(_MAX_PICTURES)]
    columns = [(f"step {step:,}", accuracy.get(step), _uri(steps[step])) for step in shown]
    if columns:
        columns.append(("original", None, _uri(folder / "original.png")))
    return [{"title": t, "accuracy": a, "data": data} for t, a, data in columns if data is not None]


def _uri(path: Path) -> str | None:
    """Return the picture as a data URI; None if it is missing or still being written."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    if not data.endswith(_PNG_END):
        return None
    return "data:image/png;base64," + base64.b64encode(data).decode("ascii")
