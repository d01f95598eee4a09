"""Print and write the table of results beside the paper's: terminal, Markdown, CSV, JSON, HTML."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from fastselfie.report.curves import Bars, label_share_chart
from fastselfie.report.render import render
from fastselfie.reproduce.cost import cost_cells, time_chart
from fastselfie.reproduce.protocol import STARTS
from fastselfie.reproduce.statistics import Figures
from fastselfie.system.files import write_atomically

JSON, MARKDOWN, CSV, PAGE = "table.json", "table.md", "table.csv", "table.html"
HEAD = (
    "labels", "images", "n", "finetuned", "supervised", "difference (95%)", "spread ratio",
    "paper: Selfie", "paper: supervised", "paper: difference", "rates",
)  # fmt: skip
FEATURES_HEAD = ("without finetuning", "bank", "P", "random weights", "pixels")


def write_table(figures: Figures, out: Path, costs: Figures | None = None) -> None:
    """Write table.json, .md, .csv and .html in `out`.

    Args:
        figures: From `summary_of`.
        out: The folder.
        costs: From `write_costs`, for the page alone: the others are the same at every speed.
    """
    name = out.resolve().name  # several reproductions may share a config
    write_atomically(out / JSON, json.dumps(figures, indent=1) + "\n")
    write_atomically(out / MARKDOWN, markdown(figures, name))
    write_atomically(out / CSV, as_csv(figures))
    page = render(
        "reproduce.html",
        name=name,
        head=HEAD,
        rows=[cells(row) for row in figures["rows"]],
        chart=chart_of(figures),
        pretext=pretext_line(figures),
        features_head=FEATURES_HEAD,
        features=feature_cells(figures),
        costs=cost_cells(costs) if costs else None,
        time_chart=time_chart(costs) if costs else None,
        notes=figures["notes"],
    )
    write_atomically(out / PAGE, page)


def markdown(figures: Figures, name: str) -> str:
    """Return the table as Markdown, with the evaluation of the features and the notes.

    Args:
        figures: From `summary_of`.
        name: Name of the reproduction.
    """
    lines = [f"# {name}: top-1 in percent, mean +- std", ""]
    lines += _markdown_rows(HEAD, [cells(row) for row in figures["rows"]])
    lines += ["", pretext_line(figures), ""]
    lines += _markdown_rows(FEATURES_HEAD, feature_cells(figures))
    lines += ["", *(f"* {note}" for note in figures["notes"])]
    return "\n".join(lines) + "\n"


def _markdown_rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def print_table(
    figures: Figures, page: Path, console: Console, costs: Figures | None = None
) -> None:
    """Print the table to a terminal, without empty columns.

    If the console is too narrow, as in a pipe, print it as Markdown: a number that breaks over two
    lines reads as another.

    Args:
        figures: From `summary_of`.
        page: Path of the HTML page, printed below.
        console: Where to print.
        costs: From `write_costs`.
    """
    name = page.resolve().parent.name
    title = f"{name}: top-1 in percent, mean +- std"
    tables = [
        _table(title, HEAD, [cells(row) for row in figures["rows"]]),
        _table(None, FEATURES_HEAD, feature_cells(figures)),
        *([_table(None, *cost_cells(costs))] if costs else []),
    ]
    notes = [pretext_line(figures), *(f"* {note}" for note in figures["notes"])]
    unbounded = console.options.update(max_width=10_000)
    if any(Measurement.get(console, unbounded, t).maximum > console.width for t in tables):
        text = markdown(figures, name)
        if costs:
            head, rows = cost_cells(costs)
            text += "\n".join(["", *_markdown_rows(head, rows)]) + "\n"
        console.print(escape(text), soft_wrap=True)
    else:
        for table in tables:
            console.print(table)
        for line in notes:
            console.print(escape(line), soft_wrap=not console.is_terminal)
    console.print(f"page: {escape(str(page))}", soft_wrap=True)


def _table(title: str | None, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Build a table for the terminal: one word of a heading per line, no broken cells."""
    used = [i for i in range(len(head)) if any(row[i] for row in rows)]
    table = Table(title=title, show_edge=False)
    for i in used:
        words = head[i] in ("rates", "arm", FEATURES_HEAD[0])
        name = head[i].replace(" ", "\n")
        table.add_column(name, justify="left" if words else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(row[i] for i in used))
    return table


def as_csv(figures: Figures) -> str:
    """Return the table as CSV: a line per share of the labels, in percent; empty if missing."""
    lines = []
    for row in figures["rows"]:
        line: dict[str, Any] = {key: row[key] for key in ("labels", "images", "n")}
        for start in STARTS:
            found = row[start] or {}
            line |= {f"{start}_{key}": _percent(found.get(key)) for key in ("mean", "std")}
            line[f"{start}_lr"] = found.get("lr")
        difference = row["difference"] or {}
        for key in ("mean", "low", "high"):
            line[f"difference_{key}"] = _percent(difference.get(key))
        line["spread_ratio"] = row["spread_ratio"]
        for start in STARTS:
            top1 = row["paper"][start] if row["paper"] else (None, None)
            line[f"paper_{start}_mean"], line[f"paper_{start}_std"] = top1
        lines.append(line)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()


def cells(row: Figures) -> list[str]:
    """Return a row of the table as text; missing figures are empty."""
    paper, ratio = row["paper"], row["spread_ratio"]
    rates = [f"{row[start]['lr']:g}" for start in STARTS if row[start]]
    return [
        f"{row['labels']:g}%",
        f"{row['images']:,}",
        str(row["n"]),
        *(_mean(row[start]) for start in STARTS),
        _difference(row["difference"]),
        "" if ratio is None else f"{ratio:.1f}",
        *("{} +- {}".format(*paper[start]) if paper else "" for start in STARTS),
        f"{paper['difference']:+.1f}" if paper else "",
        ", ".join(rates),
    ]


def pretext_line(figures: Figures) -> str:
    """Return a sentence on pretext accuracy.

    If it is far higher with crops, the crops give positions away.
    """
    f = {name: f"{value:.1%}" for name, value in figures["features"].items()}
    return (
        f"Pretext task, held out: {f['pretext_accuracy']} without augmentation, "
        f"{f['pretext_accuracy_cropped']} as pretraining crops them (chance "
        f"{f['pretext_chance']})."
    )


def feature_cells(figures: Figures) -> list[list[str]]:
    """Return the rows of the second table: features of P before finetuning, beside controls."""
    found = figures["features"]
    rows = (
        ("k-NN, features of whole images", "bank", "p_knn", "random_knn", "pixels_knn"),
        ("linear probe of those", "bank", "p_linear_probe", "random_linear_probe", None),
        (
            "k-NN, all patches side by side, standardised",
            "bank_places", "p_knn_places", "random_knn_places", "pixels_knn_standardised",
        ),
    )  # fmt: skip
    return [
        [what, f"{found[bank]:,}", *("" if key is None else f"{found[key]:.1%}" for key in keys)]
        for what, bank, *keys in rows
    ]


def _percent(value: float | None) -> float | None:
    return None if value is None else round(100 * value, 4)


def _mean(found: Figures | None) -> str:
    if found is None:
        return ""
    text = f"{100 * found['mean']:.1f}"
    return text if found["std"] is None else f"{text} +- {100 * found['std']:.1f}"


def _difference(found: Figures | None) -> str:
    if found is None:
        return ""
    text = f"{100 * found['mean']:+.1f}"
    if found["low"] is None:
        return text
    return f"{text} ({100 * found['low']:+.1f} to {100 * found['high']:+.1f})"


def chart_of(figures: Figures) -> str | None:
    """Return an SVG chart of accuracy by share of the labels; None without matplotlib."""
    bars: dict[str, Bars] = {
        start: [
            (row["labels"], 100 * found["mean"], 100 * (found["std"] or 0))
            for row in figures["rows"]
            if (found := row[start])
        ]
        for start in STARTS
    }
    paper = {
        f"paper: {name}": [
            (row["labels"], *row["paper"][start]) for row in figures["rows"] if row["paper"]
        ]
        for start, name in zip(STARTS, ("Selfie", "supervised"), strict=True)
    }
    return label_share_chart(bars, paper, "labels, percent", "top-1, percent")
