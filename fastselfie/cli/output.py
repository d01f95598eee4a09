"""Print the result of a command: a table on a terminal, JSON for a program."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

from fastselfie.stage_names import FINETUNED, SUPERVISED

if TYPE_CHECKING:
    from rich.text import Text

    from fastselfie.config import Config

Row = Sequence["str | Text"]


def print_result(
    figures: Mapping[str, Any],
    as_json: bool,
    rows: Callable[[], Iterable[Row]] | None = None,
) -> None:
    """Print the result of a command: a table on a terminal, otherwise one line of JSON.

    Args:
        figures: Results by name. Strings, such as paths, are printed below the table.
        as_json: Print JSON on a terminal too.
        rows: Makes the rows of the table; by default one row per figure.
    """
    if echo_json(figures, as_json):
        return
    lines = list(_rows(figures) if rows is None else rows())
    if lines:
        print_table(lines)
    for name, value in figures.items():
        if isinstance(value, str):  # unwrapped, so that a path can be copied
            typer.echo(f"{name}: {value}")


def print_table(rows: Sequence[Row], header: Sequence[str] = ()) -> None:
    """Print a table on standard output.

    Args:
        rows: At least one; a shorter one is filled up with empty cells.
        header: Titles of the columns. Without them only the last column may wrap.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=bool(header), show_edge=False)
    width = max(map(len, rows))
    for column in range(width):
        title = header[column] if header else ""
        table.add_column(title, no_wrap=not header and column < width - 1, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    Console(highlight=False).print(table)


def echo_json(value: Any, as_json: bool) -> bool:
    """Print a line of JSON on request, or if standard output is not a terminal.

    Returns:
        Whether it was printed.
    """
    wanted = as_json or not sys.stdout.isatty()
    if wanted:
        typer.echo(json.dumps(value))
    return wanted


def training_rows(summary: Mapping[str, Any], config: Config) -> list[Row]:
    """Return the rows of the table that `train` prints at its end: name, value, explanation."""
    from fastselfie.report.render import format_duration, format_rate

    settings = config.finetune
    rows: list[Row] = []
    if "pretext_accuracy" in summary:
        chance = f"chance {1 / config.masked:.0%}"
        rows.append(("pretext accuracy", f"{summary['pretext_accuracy']:.1%}", chance))
    rows += [
        (name.replace("_", " "), f"{summary[name]:.1%}", "of P's features")
        for name in ("knn", "linear_probe")
        if name in summary
    ]
    if settings.labels_per_class is None:
        labels = f"top-1, {100 * settings.labels:.3g}% of the labels"
    else:
        labels = f"top-1, {settings.labels_per_class} labels a class"
    for name in (FINETUNED, SUPERVISED):
        if f"{name}_accuracy" in summary:
            rows.append((str(name), f"{summary[f'{name}_accuracy']:.1%}", labels))
    if summary.get("images_per_s"):
        rows.append(("images/s", format_rate(summary["images_per_s"]), "pretraining"))
    rows.append(("time", format_duration(summary["seconds"]), "all stages"))
    return rows


def _rows(figures: Mapping[str, Any]) -> Iterable[Row]:
    """Yield one row per number; a number in a nested mapping has the names of both levels."""
    for name, value in figures.items():
        if isinstance(value, Mapping):
            for inner, figure in value.items():
                yield _words(name), _words(inner), _shown(figure)
        elif not isinstance(value, str):
            yield _words(name), _shown(value)


def _words(name: str) -> str:
    return name.replace("_", " ").replace(" per s", "/s")


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
