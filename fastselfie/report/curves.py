"""Curves of a run's logs, as SVG to stand inside a page."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

Points = Sequence[tuple[float, float]]
Bars = Sequence[tuple[float, float, float]]  # x, y, half of the error bar

# Okabe and Ito's colours, told apart by the colour-blind, without the yellow that white swallows;
# and line styles for print. Their numbers have no common divisor: 28 lines before two are alike.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7F7F7F")
_STYLES = ("-", "--", "-.", ":")
_MOST_POINTS = 400  # a curve of 120,000 steps must not weigh megabytes
_FEW_POINTS = 30  # of so many each is marked: a straight line between two hides how few they are
_INK = "#010203"  # stands for the page's own colour of text, which matplotlib cannot name


def points_of(log: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """(step, value) of every log line that has a number under `key`."""
    pairs = ((line["step"], line.get(key)) for line in log)
    return [(step, v) for step, v in pairs if isinstance(v, int | float) and math.isfinite(v)]


def thinned(points: Points, most: int = _MOST_POINTS) -> list[tuple[float, float]]:
    """At most `most` points: means of equal runs of neighbours, the last point kept as it is."""
    if len(points) <= most:
        return list(points)
    run = -(-len(points) // (most - 1))
    chunks = [points[i : i + run] for i in range(0, len(points) - 1, run)]
    means = [(sum(p[0] for p in c) / len(c), sum(p[1] for p in c) / len(c)) for c in chunks]
    return [*means, points[-1]]


def curve(
    curves: Mapping[str, Points],
    x: str,
    y: str,
    yardsticks: Mapping[str, float] | None = None,
    share: bool = False,
    zero: bool = False,
) -> str | None:
    """An SVG element with one line a name; None where matplotlib is missing or nothing is drawn.

    yardsticks: values to compare with, each a dotted line under its name. share: values are parts
    of 1, shown as percent. zero: the axis of values begins at 0.
    """
    drawn = {name: tuple(thinned(points)) for name, points in curves.items() if points}
    if all(len(points) < 2 for points in drawn.values()):
        return None
    return _drawn(tuple(drawn.items()), x, y, tuple((yardsticks or {}).items()), share, zero)


# A page is made again and again while a run goes on, and most of its charts stay as they were.
@lru_cache(maxsize=128)
def _drawn(
    curves: tuple[tuple[str, Points], ...],
    x: str,
    y: str,
    yardsticks: tuple[tuple[str, float], ...],
    share: bool,
    zero: bool,
) -> str | None:
    def draw(axes: Any) -> None:
        _plot(axes, curves, yardsticks, share)
        _name_axes(axes, x, y, share, zero)

    return _svg(draw)


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
        axes.legend(frameon=False, fontsize=10)
        _name_axes(axes, x, y, share=False, zero=False)

    return _svg(draw)


def _svg(draw: Callable[[Any], None]) -> str | None:
    """What `draw` puts on axes, as an SVG element; None where matplotlib is missing."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        return None
    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    look: dict[Any, Any] = dict.fromkeys(inked, _INK)
    # Names are shown as they are: a dollar sign begins no formula.
    look |= {"svg.fonttype": "none", "svg.hashsalt": "fastselfie", "text.parse_math": False}
    with rc_context({"font.size": 11, "grid.color": _INK, **look}):
        figure = Figure(figsize=(5, 3.4))
        # By hand: a layout that measures its own text takes half of the time.
        figure.subplots_adjust(left=0.15, right=0.97, top=0.9, bottom=0.15)
        draw(figure.add_subplot())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    svg = buffer.getvalue().replace(_INK, "currentColor")
    # Inside a page the XML header is an error, and the size is the page's to choose.
    svg = svg[svg.index("<svg") :]
    tag, rest = svg[: svg.index(">")], svg[svg.index(">") :]
    return re.sub(r' (width|height)="[^"]*"', "", tag) + rest


def _plot(
    axes: Any,
    curves: Sequence[tuple[str, Points]],
    yardsticks: Sequence[tuple[str, float]],
    share: bool,
) -> None:
    lines = []
    for index, (_, points) in enumerate(curves):
        lines += axes.plot(
            *zip(*points, strict=True),
            color=_COLOURS[index % len(_COLOURS)],
            linestyle=_STYLES[index % len(_STYLES)],
            marker="o" if len(points) <= _FEW_POINTS else None,
            markersize=3.5,
        )
    for index, (name, value) in enumerate(yardsticks):
        axes.axhline(value, color=_INK, linestyle=":", linewidth=1.2)
        said = f"{name} {value:.1%}" if share else f"{name} {value:.3g}"
        # From the right, where curves have mostly left their yardsticks behind.
        place = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
        axes.annotate(said, (1 - 0.36 * index, value), (-2, 3), ha="right", fontsize=9, **place)
    axes.legend(lines, [_label(name) for name, _ in curves], frameon=False, fontsize=10)


def _name_axes(axes: Any, x: str, y: str, share: bool, zero: bool) -> None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

    axes.set_xlabel(x)
    axes.set_ylabel(y, rotation=0, ha="left", va="bottom")
    axes.yaxis.set_label_coords(-0.16, 1.02)  # above its axis, where no number pushes it out
    if zero:
        axes.set_ylim(0, 1.1 * axes.dataLim.y1 or 1)
    if x.endswith("step"):
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    if share:
        axes.set_ylim(bottom=max(0, axes.get_ylim()[0]))  # matplotlib's margin goes below it
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    axes.grid(alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)


def _label(name: str) -> str:
    """What the legend calls a line: matplotlib leaves out names that begin with an underscore."""
    return f"\N{ZERO WIDTH SPACE}{name}" if name.startswith("_") else name
