"""Print the result of a command: a table on a terminal, JSON for a program."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastselfie.stage_names import FINETUNED, SUPERVISED

if TYPE_CHECKING:
    from fastselfie.config import Config

AsJson = Annotated[
    bool,
    typer.Option("--json", help="Print only JSON. In a pipe, the last line is JSON anyway."),
]
Row = Sequence[str]


def checked_by(parse: Callable[[str], object]) -> Callable[[str | None], str | None]:
    """A callback of an option: a value that `parse` refuses by ValueError is a usage error."""

    def check(value: str | None) -> str | None:
        try:
            if value is not None:
                parse(value)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
        return value

    return check


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
    if wants_json(as_json):
        typer.echo(json.dumps(figures))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    lines = [list(row) for row in (_rows(figures) if rows is None else rows())]
    if lines:
        table = Table(show_header=False, show_edge=False)
        width = max(len(line) for line in lines)
        for column in range(width):  # only the last column may wrap
            table.add_column(no_wrap=column < width - 1, overflow="fold")
        for line in lines:
            table.add_row(*map(escape, line + [""] * (width - len(line))))
        console.print(table)
    for name, value in figures.items():
        if isinstance(value, str):  # unwrapped, so that a path can be copied
            console.print(f"{name}: {escape(value)}", soft_wrap=True)


def wants_json(as_json: bool) -> bool:
    """Return whether to print JSON: on request, or if standard output is not a terminal."""
    return as_json or not sys.stdout.isatty()


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
    if isinstance(value, float):
        return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if value is None:
        return "-"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
