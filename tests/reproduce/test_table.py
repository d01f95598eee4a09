"""The table in every format, from made-up figures."""

from __future__ import annotations

import copy
import csv
import io
import re
import sys
from pathlib import Path

import pytest
from helpers.reproductions import FIGURES
from rich.console import Console

from fastselfie.reproduce.statistics import PAPER
from fastselfie.reproduce.table import (
    as_csv,
    cells,
    feature_cells,
    markdown,
    print_table,
    write_table,
)

GOLDEN = Path(__file__).parent / "golden"


def rendered():
    console = Console(file=io.StringIO(), width=150, highlight=False)
    print_table(FIGURES, Path("made-up/table.html"), console)
    return {"table.md": markdown(FIGURES, "made-up"), "table.csv": as_csv(FIGURES),
            "terminal.txt": console.file.getvalue()}  # fmt: skip


@pytest.mark.parametrize("name", ["table.md", "table.csv", "terminal.txt"])
def test_the_table_is_the_golden_one(name):
    """Written by `python tests/reproduce/test_table.py`: review the files after a change."""
    assert rendered()[name] == (GOLDEN / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("width", [60, 80, 100, 120, 133, 140, 150, 200])
def test_no_width_cuts_a_number(width):
    console = Console(file=io.StringIO(), width=width, highlight=False)
    print_table(FIGURES, Path("made-up/table.html"), console)
    shown = console.file.getvalue()
    for row in (*map(cells, FIGURES["rows"]), *feature_cells(FIGURES)):
        for cell in row:
            assert cell in shown


def test_the_page_stands_alone_and_escapes_what_it_is_given(tmp_path):
    write_table(FIGURES, tmp_path)
    page = (tmp_path / "table.html").read_text(encoding="utf-8")
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert "A note with &lt;b&gt; &amp; [bold]brackets[/]." in page
    for words in ("75.9 +- 0.4", "+1.7 (-0.1 to +3.5)", "paper: Selfie", "<svg"):
        assert words in page


def test_figures_in_the_csv_are_percents(tmp_path):
    first, second = csv.DictReader(io.StringIO(as_csv(FIGURES)))
    assert (first["finetuned_mean"], first["difference_low"]) == ("75.91", "-0.13")
    assert (second["supervised_mean"], second["paper_finetuned_mean"]) == ("", "")


def test_a_line_without_a_chart_where_matplotlib_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    write_table(copy.deepcopy(FIGURES), tmp_path)
    page = (tmp_path / "table.html").read_text(encoding="utf-8")
    assert "<svg" not in page
    assert "fastselfie[report]" in page


def test_the_papers_rows_are_whole():
    """Three sets, four shares, and Selfie nowhere below the control."""
    assert {name: len(rows) for name, rows in PAPER.items()} == {
        "cifar10": 4, "imagenet32": 4, "imagenet224": 4}  # fmt: skip
    for rows in PAPER.values():
        for arms in rows.values():
            assert arms["finetuned"][0] >= arms["supervised"][0]


if __name__ == "__main__":
    for name, text in rendered().items():
        (GOLDEN / name).write_text(text, encoding="utf-8")
