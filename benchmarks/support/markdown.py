"""Markdown for committed results."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table, without the columns that are empty in every row."""
    rows = list(rows)
    used = [i for i in range(len(head)) if any(row[i] for row in rows)]
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(line[i] for i in used)} |" for line in lines]


def median(spread: dict[str, float], form: str) -> str:
    """Return "median (min to max)", each number in the format `form`."""
    return f"{spread['median']:{form}} ({spread['min']:{form}} to {spread['max']:{form}})"


def machine(environment: dict[str, Any]) -> str:
    """Return the processor and the version of torch that a result was measured with."""
    return f"{environment['processor']}, torch {environment['torch']}"
