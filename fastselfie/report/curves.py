"""Curves of a run's logs, as SVG to stand inside a page."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

Points = Sequence[tuple[float, float]]

# Okabe and Ito's colours, told apart by the colour-blind; and line styles for print.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
_STYLES = ("-", "--", "-.", ":")
_MOST_POINTS = 400  # a curve of 120,000 steps must not weigh megabytes


def points_of(log: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """(step, value) of every log line that has `key`."""
    return [(line["step"], line[key]) for line in log if key in line]


def thinned(points: Points, most: int = _MOST_POINTS) -> list[tuple[float, float]]:
    """At most `most` points: means of equal runs of neighbours, the last point kept as it is."""
    if len(points) <= most:
        return list(points)
    run = -(-len(points) // (most - 1))
    chunks = [points[i : i + run] for i in range(0, len(points) - 1, run)]
    means = [(sum(p[0] for p in c) / len(c), sum(p[1] for p in c) / len(c)) for c in chunks]
    return [*means, points[-1]]


def curve(curves: Mapping[str, Points], x: str, y: str, chance: float | None = None) -> str | None:
    """An SVG element with one line a name; None where matplotlib is missing or nothing is drawn.

    chance: a dotted line at the value that guessing reaches.
    """
    drawn = {name: thinned(points) for name, points in curves.items() if len(points) > 1}
    if not drawn:
        return None
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        return None
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "fastselfie", "font.size": 11}):
        figure = Figure(figsize=(5.6, 3.4), layout="constrained")
        axes = figure.add_subplot()
        for index, (name, points) in enumerate(drawn.items()):
            axes.plot(
                *zip(*points, strict=True),
                label=name,
                color=_COLOURS[index % len(_COLOURS)],
                linestyle=_STYLES[index % len(_STYLES)],
            )
        if chance is not None:
            axes.axhline(chance, color="#666666", linestyle=":", linewidth=1, label="chance")
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=10)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    svg = buffer.getvalue()
    # Inside a page the XML header is an error, and the size is the page's to choose.
    svg = svg[svg.index("<svg") :]
    tag, rest = svg[: svg.index(">")], svg[svg.index(">") :]
    return re.sub(r' (width|height)="[^"]*"', "", tag) + rest
