"""Charts as SVG elements for HTML pages."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

Points = Sequence[tuple[float, float]]
Bars = Sequence[tuple[float, float, float]]  # x, y, half of the error bar

# Okabe and Ito's colours for the colour-blind, without yellow, which is faint on white; and line
# styles for print. 7 and 4 have no common divisor, so 28 lines differ.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7F7F7F")
_STYLES = ("-", "--", "-.", ":")
_MAX_POINTS = 400  # keeps a curve of 120,000 steps below megabytes
_MARKED_POINTS = 30  # with at most so many, each is marked, to show how few they are
_INK = "#010203"  # placeholder for the text colour of the page, which matplotlib cannot name


def points_of(log: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """Return (step, value) of every log line that has a finite number under `key`."""
    pairs = ((line["step"], line.get(key)) for line in log)
    return [(step, v) for step, v in pairs if isinstance(v, int | float) and math.isfinite(v)]


def downsample(points: Points, most: int = _MAX_POINTS) -> list[tuple[float, float]]:
    """Return at most `most` points: means of equal chunks, and the last point unchanged."""
    if len(points) <= most:
        return list(points)
    size = -(-len(points) // (most - 1))
    chunks = [points[i : i + size] for i in range(0, len(points) - 1, size)]
    means = [(sum(p[0] for p in c) / len(c), sum(p[1] for p in c) / len(c)) for c in chunks]
    return [*means, points[-1]]


def line_chart(
    curves: Mapping[str, Points],
    x: str,
    y: str,
    baselines: Mapping[str, float] | None = None,
    percent: bool = False,
    from_zero: bool = False,
) -> str | None:
    """Draw curves as an SVG element.

    Args:
        curves: Points of each curve, by its name.
        x: Label of the x axis.
        y: Label of the y axis.
        baselines: Values to compare with, each drawn as a dotted line, by name.
        percent: Values are shares of 1, and shown as percent.
        from_zero: The y axis starts at 0.

    Returns:
        The SVG; None without matplotlib, or if no curve has two points.
    """
    drawn = {name: tuple(downsample(points)) for name, points in curves.items() if points}
    if all(len(points) < 2 for points in drawn.values()):
        return None
    return _drawn(tuple(drawn.items()), x, y, tuple((baselines or {}).items()), percent, from_zero)


# The page of a running run is rendered again and again; most of its charts do not change.
@lru_cache(maxsize=128)
def _drawn(
    curves: tuple[tuple[str, Points], ...],
    x: str,
    y: str,
    baselines: tuple[tuple[str, float], ...],
    percent: bool,
    from_zero: bool,
) -> str | None:
    def draw(axes: Any) -> None:
        lines = []
        for index, (_, points) in enumerate(curves):
            lines += axes.plot(
                *zip(*points, strict=True),
                color=_COLOURS[index % len(_COLOURS)],
                linestyle=_STYLES[index % len(_STYLES)],
                marker="o" if len(points) <= _MARKED_POINTS else None,
                markersize=3.5,
            )
        for index, (name, value) in enumerate(baselines):
            axes.axhline(value, color=_INK, linestyle=":", linewidth=1.2)
            text = f"{name} {value:.1%}" if percent else f"{name} {value:.3g}"
            # On the right, where curves are mostly far from the baselines.
            place = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
            axes.annotate(text, (1 - 0.36 * index, value), (-2, 3), ha="right", fontsize=9, **place)
        # matplotlib leaves out names with an underscore in front.
        names = [f"\N{ZERO WIDTH SPACE}{n}" if n.startswith("_") else n for n, _ in curves]
        axes.legend(lines, names, frameon=False, fontsize=10)
        _name_axes(axes, x, y, percent, from_zero)

    return _svg(draw)


def label_share_chart(
    ours: Mapping[str, Bars], theirs: Mapping[str, Bars], x: str, y: str
) -> str | None:
    """Draw accuracy by share of the labels as an SVG element, over a logarithmic x axis.

    Args:
        ours: Points with error bars of each line, by its name.
        theirs: The same of the paper, in the same order: hollow markers in the same colours.
        x: Label of the x axis.
        y: Label of the y axis.

    Returns:
        The SVG; None without matplotlib, or if `ours` has no points.
    """
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
        _name_axes(axes, x, y, percent=False, from_zero=False)

    return _svg(draw)


def _svg(draw: Callable[[Any], None]) -> str | None:
    """Return what `draw` puts on the axes as an SVG element; None without matplotlib."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        return None
    coloured = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    look: dict[Any, Any] = dict.fromkeys(coloured, _INK)
    # A dollar sign in a name must not start a formula.
    look |= {"svg.fonttype": "none", "svg.hashsalt": "fastselfie", "text.parse_math": False}
    with rc_context({"font.size": 11, "grid.color": _INK, **look}):
        figure = Figure(figsize=(5, 3.4))
        # Fixed margins: a layout that measures its text takes half of the time.
        figure.subplots_adjust(left=0.15, right=0.97, top=0.9, bottom=0.15)
        draw(figure.add_subplot())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    svg = buffer.getvalue().replace(_INK, "currentColor")
    # In a page the XML header is an error, and the page sets the size.
    svg = svg[svg.index("<svg") :]
    tag, rest = svg[: svg.index(">")], svg[svg.index(">") :]
    return re.sub(r' (width|height)="[^"]*"', "", tag) + rest


def _name_axes(axes: Any, x: str, y: str, percent: bool, from_zero: bool) -> None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

    axes.set_xlabel(x)
    axes.set_ylabel(y, rotation=0, ha="left", va="bottom")
    axes.yaxis.set_label_coords(-0.16, 1.02)  # above the axis, where no number moves it
    if from_zero:
        axes.set_ylim(0, 1.1 * axes.dataLim.y1 or 1)
    if x.endswith("step"):
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    if percent:
        axes.set_ylim(bottom=max(0, axes.get_ylim()[0]))  # matplotlib's margin goes below 0
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    axes.grid(alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)
