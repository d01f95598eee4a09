"""Several runs on one page: what they reached, what their configs differ in, their curves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastselfie.config import Config, leaves
from fastselfie.report.charts import overlays
from fastselfie.report.figures import figures_of
from fastselfie.report.render import render
from fastselfie.runs.folder import RunFolder


def compare_page(runs: Sequence[RunFolder], refresh: int | None = None) -> str:
    """The page of several runs side by side, in the order given.

    refresh: seconds after which it loads itself again while one of them is unfinished.
    """
    named = dict(zip(_names([run.path for run in runs]), runs, strict=True))
    going = not all(run.state().finished for run in runs)
    return render(
        "compare.html",
        names=list(named),
        refresh=refresh if going else None,
        figures=_rows(runs),
        differences=_differences([run.config for run in runs]),
        charts=overlays(named),
    )


def _names(paths: Sequence[Path]) -> list[str]:
    """What each run is called: its folder, by as much of its path as tells them apart."""
    absolute = [path.resolve() for path in paths]
    for parts in range(1, max(len(path.parts) for path in absolute) + 1):
        names = ["/".join(path.parts[-parts:]) for path in absolute]
        if len(set(names)) == len(set(absolute)):
            break
    # One that is given twice is two lines all the same.
    return [f"{name} ({names[:i].count(name) + 1})" if name in names[:i] else name
            for i, name in enumerate(names)]  # fmt: skip


def _rows(runs: Sequence[RunFolder]) -> list[tuple[str, list[str]]]:
    """(figure, its value in each run) of what any run has, and how far each is."""
    states = [run.state() for run in runs]
    far = [
        "finished" if s.finished else f"{s.stage}, step {s.done:,} of {s.steps:,}" for s in states
    ]
    columns = [figures_of(run) for run in runs]
    rows = [(each[0].name, [figure.value or "" for figure in each])
            for each in zip(*columns, strict=True)]  # fmt: skip
    return [("state", far), *((name, values) for name, values in rows if any(values))]


def _differences(configs: Sequence[Config]) -> list[tuple[str, list[str]]]:
    """(dotted key, its value in each config) of the keys that are not the same in all."""
    values = [config.model_dump(mode="json") for config in configs]
    rows = []
    for key, _ in leaves(Config):
        each = [_value(mapping, key) for mapping in values]
        if not isinstance(each[0], Mapping) and any(value != each[0] for value in each):
            rows.append((key, [json.dumps(value, ensure_ascii=False) for value in each]))
    return rows


def _value(mapping: Any, key: str) -> Any:
    for part in key.split("."):
        mapping = mapping[part]
    return mapping
