"""A run's page: one HTML file with its state, figures, pictures and curves inside it."""

from __future__ import annotations

import base64
import shlex
from pathlib import Path
from typing import Any

from fastselfie.report.charts import charts_of
from fastselfie.report.curves import points_of
from fastselfie.report.figures import figures_of, signs_of
from fastselfie.report.render import render, shown_moment, shown_time
from fastselfie.runs.folder import PAGE, RunFolder
from fastselfie.stage_names import PRETRAIN
from fastselfie.system.files import write_atomically

REFRESH = 10  # seconds between two looks of an open page at its file
_MOST_PICTURES = 6  # beside the original: a page stays under 2 MB
_PNG_END = b"IEND\xaeB`\x82"


def run_page(run: RunFolder, running: bool | None = None, refresh: int = REFRESH) -> str:
    """The page of one run. Nothing is fetched when it is opened.

    running: as the run itself knows; None, whoever reads its folder from outside: by how old its
    last line is. refresh: seconds after which the page of an unfinished run loads itself again.
    """
    state = run.state()
    known = {True: "running", False: "stopped", None: None}
    finished = state.finished and not running
    return render(
        "page.html",
        name=run.path.resolve().name,
        config=run.config,
        yaml=run.config.to_yaml(),
        state=state,
        status="finished" if finished else known[running],
        refresh=None if finished else refresh,
        last=shown_moment(state.last),
        left=None if state.seconds_left is None else shown_time(state.seconds_left),
        figures=[figure for figure in figures_of(run) if figure.value is not None],
        signs=signs_of(run),
        environment=run.environment,
        charts=charts_of(run),
        pictures=_pictures(run),
        command=shlex.join(
            ("fastselfie", "train", str(run.path / "config.yaml"), "--out", str(run.path))
        ),
    )


def write_page(run: RunFolder, running: bool | None = None) -> Path:
    """Write `run_page` as report.html into the run's folder; return its path. Raises OSError."""
    path = run.path / PAGE
    write_atomically(path, run_page(run, running))
    return path


def _pictures(run: RunFolder) -> list[dict[str, Any]]:
    """The mask-prediction columns in order of their steps, the originals last."""
    folder = run.path / PRETRAIN / "pictures"
    accuracy = dict(points_of(run.logs[PRETRAIN], "pretext_accuracy"))
    steps = {int(path.stem): path for path in folder.glob("*.png") if path.stem.isdecimal()}
    shown = _spread(sorted(steps))
    columns = [(f"step {step:,}", accuracy.get(step), _uri(steps[step])) for step in shown]
    if columns:
        columns.append(("original", None, _uri(folder / "original.png")))
    return [{"title": t, "accuracy": a, "data": data} for t, a, data in columns if data is not None]


def _spread(steps: list[int]) -> list[int]:
    """As many as are shown, the first and the last among them."""
    if len(steps) <= _MOST_PICTURES:
        return steps
    last = len(steps) - 1
    return [steps[round(i * last / (_MOST_PICTURES - 1))] for i in range(_MOST_PICTURES)]


def _uri(path: Path) -> str | None:
    """The picture inside the page; None of one that is missing, or that is being written."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    if not data.endswith(_PNG_END):
        return None
    return "data:image/png;base64," + base64.b64encode(data).decode("ascii")
