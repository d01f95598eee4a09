"""Compare several runs on one page: figures, differences of their configs, curves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

from fastselfie.config import Config, leaves
from fastselfie.report.charts import overlay_charts
from fastselfie.report.figures import figures_of
from fastselfie.report.render import render
from fastselfie.runs.folder import RunFolder


def compare_page(runs: Sequence[RunFolder], refresh: int | None = None) -> str:
    """Return the page of several runs side by side.

    Args:
        runs: In the order of the columns.
        refresh: The page reloads after so many seconds while a run is unfinished; None: never.
    """
    named = dict(zip(_names([run.path for run in runs]), runs, strict=True))
    finished = all(run.state().finished for run in runs)
    return render(
        "compare.html",
        names=list(named),
        refresh=None if finished else refresh,
        figures=_rows(runs),
        differences=_differences([run.config for run in runs]),
        charts=overlay_charts(named),
    )


def _names(paths: Sequence[Path]) -> list[str]:
    """Return a name for each run: as many of the last parts of its path as make it unique."""
    absolute = [path.resolve() for path in paths]
    for parts in range(1, max(len(path.parts) for path in absolute) + 1):
        names = ["/".join(path.parts[-parts:]) for path in absolute]
        if len(set(names)) == len(set(absolute)):
            break
    # A run that is given twice gets a number.
    return [f"{name} ({names[:i].count(name) + 1})" if name in names[:i] else name
            for i, name in enumerate(names)]  # fmt: skip


def _rows(runs: Sequence[RunFolder]) -> list[tuple[str, list[str]]]:
    """Return (name, value in each run) for the state and each figure that any run has."""
    states = [run.state() for run in runs]
    progress = [
        "finished" if s.finished else f"{s.stage}, step {s.done:,} of {s.steps:,}" for s in states
    ]
    columns = [figures_of(run) for run in runs]
    rows = [(each[0].name, [figure.value or "" for figure in each])
            for each in zip(*columns, strict=True)]  # fmt: skip
    return [("state", progress), *((name, values) for name, values in rows if any(values))]


def _differences(configs: Sequence[Config]) -> list[tuple[str, list[str]]]:
    """Return (dotted key, value in each config) for each key that differs."""
    values: list[Any] = [config.model_dump(mode="json") for config in configs]
    rows = []
    for key, _ in leaves(Config):
        each = [reduce(getitem, key.split("."), mapping) for mapping in values]
        if not isinstance(each[0], Mapping) and any(value != each[0] for value in each):
            rows.append((key, [json.dumps(value, ensure_ascii=False) for value in each]))
    return rows
