"""Which curves a page shows, of one run or of several laid over each other."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from fastselfie.report.curves import curve, points_of
from fastselfie.runs.folder import RunFolder
from fastselfie.stage_names import FINETUNED, PRETRAIN, SUPERVISED

Yardsticks = Callable[[RunFolder], Mapping[str, float | None]]


def classes_of(run: RunFolder) -> int | None:
    """How many classes the run tells apart, once it has chosen its labels."""
    try:
        with open(run.path / "labels.txt", encoding="ascii", errors="replace") as file:
            found = re.search(r"(\d+) classes", file.readline())
    except FileNotFoundError:
        return None
    return int(found[1]) if found else None


def _guessing_holes(run: RunFolder) -> dict[str, float | None]:
    return {"chance": 1 / run.config.masked}


def _guessing_classes(run: RunFolder) -> dict[str, float | None]:
    classes = classes_of(run)
    return {"chance": 1 / classes if classes else None}


def _untrained(key: str) -> Yardsticks:
    def of(run: RunFolder) -> dict[str, float | None]:
        pixels = run.last(PRETRAIN, f"{key}_pixels")
        return {"random weights": run.first(PRETRAIN, key), "raw pixels": pixels}

    return of


@dataclass(frozen=True)
class Chart:
    """A chart of one run. lines: label -> (stage, key of its log). share, zero: see `curve`."""

    title: str
    x: str
    y: str
    lines: Mapping[str, tuple[str, str]]
    share: bool = False
    yardsticks: Yardsticks = field(default=lambda run: {})
    zero: bool = False


def _pretraining(key: str, label: str = "pretraining") -> dict[str, tuple[str, str]]:
    return {label: (PRETRAIN, key)}


def _arms(key: str) -> dict[str, tuple[str, str]]:
    return {name: (name, key) for name in (FINETUNED, SUPERVISED)}


_STEP, _NATS = "pretraining step", "cross-entropy, nats"
CHARTS = (
    Chart(
        "Pretext accuracy",
        _STEP,
        "holes answered right, %",
        {**_pretraining("accuracy", "training"), **_pretraining("pretext_accuracy", "held out")},
        share=True,
        yardsticks=_guessing_holes,
    ),
    Chart(
        "Pretext loss",
        _STEP,
        _NATS,
        {**_pretraining("loss", "training"), **_pretraining("heldout_loss", "held out")},
        yardsticks=lambda run: {"chance": math.log(run.config.masked)},
    ),
    Chart("k-NN on P's features", _STEP, "top-1, %", _pretraining("knn", "k-NN"), True,
          _untrained("knn")),
    Chart("Linear probe on P's features", _STEP, "top-1, %",
          _pretraining("linear_probe", "linear probe"), True, _untrained("linear_probe")),
    Chart("Accuracy on held-out images", "step", "top-1, %", _arms("top1"), True,
          _guessing_classes),
    Chart("Loss on held-out images", "step", _NATS, _arms("heldout_loss")),
    Chart("Loss on the labelled images", "step", _NATS, _arms("loss")),
    Chart("Norm of the gradient", _STEP, "L2 norm", _pretraining("grad_norm")),
    Chart("Throughput", _STEP, "images a second", _pretraining("images_per_s"), zero=True),
    Chart("Waiting for data", _STEP, "share of the time, %", _pretraining("waiting"), True,
          zero=True),
)  # fmt: skip


def charts_of(run: RunFolder) -> dict[str, str]:
    """Title -> SVG of each chart that has something to show."""
    drawn = {}
    for chart in CHARTS:
        curves = {label: points_of(run.logs[s], key) for label, (s, key) in chart.lines.items()}
        marks = {name: v for name, v in chart.yardsticks(run).items() if v is not None}
        drawn[chart.title] = curve(curves, chart.x, chart.y, marks, chart.share, chart.zero)
    return {title: svg for title, svg in drawn.items() if svg is not None}


def overlays(runs: Mapping[str, RunFolder]) -> dict[str, str]:
    """Title -> SVG of each quantity, with a line a run; a yardstick only where all share it."""
    drawn = {}
    for chart in CHARTS:
        marks = _shared([chart.yardsticks(run) for run in runs.values()])
        for label, (stage, key) in chart.lines.items():
            title = chart.title if len(chart.lines) == 1 else f"{chart.title}, {label}"
            curves = {name: points_of(run.logs[stage], key) for name, run in runs.items()}
            drawn[title] = curve(curves, chart.x, chart.y, marks, chart.share, chart.zero)
    return {title: svg for title, svg in drawn.items() if svg is not None}


def _shared(marks: Sequence[Mapping[str, float | None]]) -> dict[str, float]:
    first = marks[0]
    return {name: v for name, v in first.items()
            if v is not None and all(other.get(name) == v for other in marks)}  # fmt: skip
