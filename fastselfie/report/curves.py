"""Curves of a run's logs, as SVG to stand inside a page."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Points = Sequence[tuple[float, float]]
Bars = Sequence[tuple[float, float, float]]  # x, y, half of the error bar

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

    def draw(axes: Any) -> None:
        for index, (name, points) in enumerate(drawn.items()):
            axes.plot(
                *zip(*points, strict=True),
                label=name,
                color=_COLOURS[index % len(_COLOURS)],
                linestyle=_STYLES[index % len(_STYLES)],
            )
        if chance is not None:
            axes.axhline(chance, color="#666666", linestyle=":", linewidth=1, label="chance")

    return _svg(draw, x, y)


def shares(ours: Mapping[str, Bars], theirs: Mapping[str, Bars], x: str, y: str) -> str | None:
    """An SVG element over a logarithmic x: ours as lines, theirs, in the same order and colours, as
    hollow markers; None where matplotlib is missing or nothing is drawn."""
    if not any(ours.values()):
        return None

    def draw(axes: Any) -> None:
        ticks = sorted({bar[0] for bars in ours.values() for bar in bars})
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        for hollow, group in ((False, ours), (True, theirs)):
            for index, (name, bars) in enumerate(group.items()):
                if bars:
                    axes.errorbar(
                        *zip(*bars, strict=True),
                        label=name,
                        color=_COLOURS[index % len(_COLOURS)],
                        linestyle="none" if hollow else _STYLES[index % len(_STYLES)],
                        marker="os"[index % 2],
                        markerfacecolor="none" if hollow else None,
                        markersize=8 if hollow else 5,
                        capsize=3,
                    )

    return _svg(draw, x, y)


def _svg(draw: Callable[[Any], None], x: str, y: str) -> str | None:
    """What `draw` puts on axes, as an SVG element; None where matplotlib is missing."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        return None
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "fastselfie", "font.size": 11}):
        figure = Figure(figsize=(5.6, 3.4), layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
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
