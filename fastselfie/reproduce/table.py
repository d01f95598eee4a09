"""The table beside the paper's: in a terminal, as Markdown, CSV, JSON and a page with a chart."""

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

from fastselfie.report.curves import Bars, shares
from fastselfie.report.render import render
from fastselfie.reproduce.statistics import Figures
from fastselfie.stage_names import FINETUNED, SUPERVISED
from fastselfie.system.files import write_atomically

JSON, MARKDOWN, CSV, PAGE = "table.json", "table.md", "table.csv", "table.html"
HEAD = (
    "labels", "images", "n", "finetuned", "supervised", "difference (95%)", "spread ratio",
    "paper: Selfie", "paper: supervised", "paper: difference", "rates",
)  # fmt: skip
FEATURES_HEAD = ("without finetuning", "bank", "P", "random weights", "pixels")


def write_table(figures: Figures, out: Path) -> None:
    """Write table.json, .md, .csv and .html in `out`."""
    name = out.resolve().name  # its config may be another reproduction's too
    write_atomically(out / JSON, json.dumps(figures, indent=1) + "\n")
    write_atomically(out / MARKDOWN, markdown(figures, name))
    write_atomically(out / CSV, as_csv(figures))
    write_atomically(out / PAGE, _page(figures, name))


def markdown(figures: Figures, name: str) -> str:
    """The table with its title, what P's features are worth, and the notes."""
    lines = [f"# {name}: top-1 in percent, mean +- std", "", *_rule(HEAD)]
    lines += [_line(cells(row)) for row in figures["rows"]]
    lines += ["", pretext_line(figures), "", *_rule(FEATURES_HEAD)]
    lines += [_line(row) for row in feature_cells(figures)]
    lines += ["", *(f"* {note}" for note in figures["notes"])]
    return "\n".join(lines) + "\n"


def print_table(figures: Figures, page: Path, console: Console) -> None:
    """The same for a terminal; columns without an entry are left out.

    As Markdown where the console is too narrow, as of a pipe: cut in two a number says another.
    """
    name = page.resolve().parent.name
    title = f"{name}: top-1 in percent, mean +- std"
    tables = [
        _table(title, HEAD, [cells(row) for row in figures["rows"]]),
        _table(None, FEATURES_HEAD, feature_cells(figures)),
    ]
    notes = [pretext_line(figures), *(f"* {note}" for note in figures["notes"])]
    unbounded = console.options.update(max_width=10_000)
    if any(Measurement.get(console, unbounded, t).maximum > console.width for t in tables):
        console.print(escape(markdown(figures, name)), soft_wrap=True)
    else:
        for table in tables:
            console.print(table)
        for line in notes:
            console.print(escape(line), soft_wrap=not console.is_terminal)
    console.print(f"page: {escape(str(page))}", soft_wrap=True)


def _table(title: str | None, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Of a terminal: a title takes a line a word, and nothing is broken."""
    used = [i for i in range(len(head)) if any(row[i] for row in rows)]
    table = Table(title=title, show_edge=False)
    for i in used:
        words = head[i] in ("rates", FEATURES_HEAD[0])
        name = head[i].replace(" ", "\n")
        table.add_column(name, justify="left" if words else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(row[i] for i in used))
    return table


def as_csv(figures: Figures) -> str:
    """One line a share of the labels, figures in percent; what is not there is empty."""
    lines = []
    for row in figures["rows"]:
        line: dict[str, Any] = {key: row[key] for key in ("labels", "images", "n")}
        for arm in (FINETUNED, SUPERVISED):
            found = row[arm] or dict.fromkeys(("mean", "std", "lr"))
            line[f"{arm}_mean"], line[f"{arm}_std"] = (
                _percent(found["mean"]),
                _percent(found["std"]),
            )
            line[f"{arm}_lr"] = found["lr"]
        difference = row["difference"] or dict.fromkeys(("mean", "low", "high"))
        line |= {f"difference_{key}": _percent(value) for key, value in difference.items()}
        line["spread_ratio"] = row["spread_ratio"]
        paper = row["paper"] or {FINETUNED: (None, None), SUPERVISED: (None, None)}
        for arm in (FINETUNED, SUPERVISED):
            line[f"paper_{arm}_mean"], line[f"paper_{arm}_std"] = paper[arm]
        lines.append(line)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()


def cells(row: Figures) -> list[str]:
    """A row of the table in words; empty where there is nothing to say."""
    paper, ratio = row["paper"], row["spread_ratio"]
    rates = [f"{row[arm]['lr']:g}" for arm in (FINETUNED, SUPERVISED) if row[arm]]
    return [
        f"{row['labels']:g}%",
        f"{row['images']:,}",
        str(row["n"]),
        *(_mean(row[arm]) for arm in (FINETUNED, SUPERVISED)),
        _difference(row["difference"]),
        "" if ratio is None else f"{ratio:.1f}",
        *(
            f"{paper[arm][0]} +- {paper[arm][1]}" if paper else ""
            for arm in (FINETUNED, SUPERVISED)
        ),
        f"{paper['difference']:+.1f}" if paper else "",
        ", ".join(rates),
    ]


def pretext_line(figures: Figures) -> str:
    """What the pretext task came to. Far more right as cropped: then the crop gives places away."""
    f = {name: f"{value:.1%}" for name, value in figures["features"].items()}
    return (
        f"Pretext task, held out: {f['pretext_accuracy']} without augmentation, "
        f"{f['pretext_accuracy_cropped']} as pretraining crops them (chance "
        f"{f['pretext_chance']})."
    )


def feature_cells(figures: Figures) -> list[list[str]]:
    """What P has learned before any label was seen, beside what needs no learning: the rows."""
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


def _rule(head: Sequence[str]) -> list[str]:
    return [_line(head), _line(["---"] * len(head))]


def _line(words: Sequence[str]) -> str:
    return f"| {' | '.join(words)} |"


def _percent(value: float | None) -> float | None:
    return None if value is None else round(100 * value, 4)


def _mean(arm: Figures | None) -> str:
    if arm is None:
        return ""
    text = f"{100 * arm['mean']:.1f}"
    return text if arm["std"] is None else f"{text} +- {100 * arm['std']:.1f}"


def _difference(found: Figures | None) -> str:
    if found is None:
        return ""
    text = f"{100 * found['mean']:+.1f}"
    if found["low"] is None:
        return text
    return f"{text} ({100 * found['low']:+.1f} to {100 * found['high']:+.1f})"


def _page(figures: Figures, name: str) -> str:
    return render(
        "reproduce.html",
        name=name,
        head=HEAD,
        rows=[cells(row) for row in figures["rows"]],
        chart=chart_of(figures),
        pretext=pretext_line(figures),
        features_head=FEATURES_HEAD,
        features=feature_cells(figures),
        notes=figures["notes"],
    )


def chart_of(figures: Figures) -> str | None:
    """Accuracy over the share of the labels, the paper's as hollow markers; None: no matplotlib."""
    bars: dict[str, Bars] = {}
    for arm in (FINETUNED, SUPERVISED):
        rows = [row for row in figures["rows"] if row[arm]]
        bars[arm] = [
            (row["labels"], 100 * row[arm]["mean"], 100 * (row[arm]["std"] or 0)) for row in rows
        ]
    paper = {
        f"paper: {name}": [
            (row["labels"], *row["paper"][arm]) for row in figures["rows"] if row["paper"]
        ]
        for arm, name in ((FINETUNED, "Selfie"), (SUPERVISED, "supervised"))
    }
    return shares(bars, paper, "labels, percent", "top-1, percent")
