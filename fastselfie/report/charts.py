"""The charts of a page: the curves of one run, or of several runs overlaid."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fastselfie.report.curves import Points, line_chart, points_of
from fastselfie.runs.folder import RunFolder
from fastselfie.stage_names import FINETUNED, PRETRAIN, SUPERVISED

Baselines = Callable[[RunFolder], Mapping[str, float | None]]


def class_chance(run: RunFolder) -> float | None:
    """Return the accuracy of guessing a class; None before the run has chosen its labels."""
    try:
        with open(run.path / "labels.txt", encoding="ascii", errors="replace") as file:
            found = re.search(r"([1-9]\d*) classes", file.readline())
    except FileNotFoundError:
        return None
    return 1 / int(found[1]) if found else None


def _untrained(key: str) -> Baselines:
    return lambda run: {
        "random weights": run.first("pretrain", key),
        "raw pixels": run.last("pretrain", f"{key}_pixels"),
    }


@dataclass(frozen=True)
class Chart:
    """A chart of one run.

    Attributes:
        title: Heading above the chart.
        x: Label of the x axis.
        y: Label of the y axis.
        lines: Label of each line -> (stage, key in its log).
        percent: See `line_chart`.
        baselines: Returns the baselines of a run, name -> value.
        from_zero: See `line_chart`.
        whole: Draw the chart of one run only if every line has points.
    """

    title: str
    x: str
    y: str
    lines: Mapping[str, tuple[str, str]]
    percent: bool = False
    baselines: Baselines = field(default=lambda run: {})
    from_zero: bool = False
    whole: bool = False

    def draw(self, curves: Mapping[str, Points], marks: Mapping[str, float]) -> str | None:
        """Draw curves and baselines as this chart."""
        return line_chart(curves, self.x, self.y, marks, self.percent, self.from_zero)


def _pretraining(key: str, label: str = "pretraining") -> dict[str, tuple[str, str]]:
    return {label: (PRETRAIN, key)}


def _arms(key: str) -> dict[str, tuple[str, str]]:
    return {name: (name, key) for name in (FINETUNED, SUPERVISED)}


def _pretext_chance(run: RunFolder) -> dict[str, float]:
    return {"chance": 1 / run.config.masked}


_STEP, _NATS = "pretraining step", "cross-entropy, nats"
_IDENTIFIED = "masked patches identified, %"
CHARTS = (
    Chart("Pretext accuracy", _STEP, _IDENTIFIED,
          _pretraining("accuracy", "training") | _pretraining("pretext_accuracy", "held out"),
          True, _pretext_chance),
    Chart("Use of context", _STEP, _IDENTIFIED,
          _pretraining("pretext_accuracy", "own context")
          | _pretraining("pretext_accuracy_other_context", "another image's context")
          | _pretraining("pretext_accuracy_no_context", "no context"),
          True, _pretext_chance, whole=True),
    Chart("Pretext loss", _STEP, _NATS,
          _pretraining("loss", "training") | _pretraining("heldout_loss", "held out"),
          baselines=lambda run: {"chance": math.log(run.config.masked)}),
    Chart("k-NN on P's features", _STEP, "top-1, %", _pretraining("knn", "k-NN"), True,
          _untrained("knn")),
    Chart("Linear probe on P's features", _STEP, "top-1, %",
          _pretraining("linear_probe", "linear probe"), True, _untrained("linear_probe")),
    Chart("Accuracy on held-out images", "step", "top-1, %", _arms("top1"), True,
          lambda run: {"chance": class_chance(run)}),
    Chart("Loss on held-out images", "step", _NATS, _arms("heldout_loss")),
    Chart("Loss on the labelled images", "step", _NATS, _arms("loss")),
    Chart("Norm of the gradient", _STEP, "L2 norm", _pretraining("grad_norm")),
    Chart("Throughput", _STEP, "images a second", _pretraining("images_per_s"), from_zero=True),
    Chart("Waiting for data", _STEP, "share of the time, %", _pretraining("waiting"), True,
          from_zero=True),
)  # fmt: skip


def charts_of(run: RunFolder) -> dict[str, str]:
    """Return title -> SVG of each chart of a run that has data."""
    drawn = {}
    for chart in CHARTS:
        curves = {label: points_of(run.logs[s], key) for label, (s, key) in chart.lines.items()}
        if chart.whole and not all(curves.values()):  # a log of an older version
            continue
        marks = {name: v for name, v in chart.baselines(run).items() if v is not None}
        drawn[chart.title] = chart.draw(curves, marks)
    return {title: svg for title, svg in drawn.items() if svg is not None}


def overlay_charts(runs: Mapping[str, RunFolder]) -> dict[str, str]:
    """Return title -> SVG of each quantity, with one line per run.

    A baseline is drawn if all runs share it.
    """
    drawn: dict[str, str | None] = {}
    seen = set()
    for chart in CHARTS:
        first, *others = (chart.baselines(run) for run in runs.values())
        marks = {name: value for name, value in first.items()
                 if value is not None and all(o.get(name) == value for o in others)}  # fmt: skip
        for label, (stage, key) in chart.lines.items():
            if (stage, key) in seen:
                continue
            seen.add((stage, key))
            title = chart.title if len(chart.lines) == 1 else f"{chart.title}, {label}"
            curves = {name: points_of(run.logs[stage], key) for name, run in runs.items()}
            drawn[title] = chart.draw(curves, marks)
    return {title: svg for title, svg in drawn.items() if svg is not None}
