"""A profile's page, one HTML file with its charts inside it; and a table for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fastselfie.report.curves import curve
from fastselfie.report.render import render, shown_rate
from fastselfie.system.files import write_atomically

_WORDS = {
    "waiting": "waiting for data",
    "copy": "copy to the device",
    "forward": "P, A and scoring, compiled as one",
}


def write_profile_page(path: Path, figures: Mapping[str, Any], yaml: str, trace: str) -> None:
    """Write the page under `path`. trace: the file beside it. Nothing is fetched when it opens."""
    memory = figures["memory"]
    charts = {
        f"Tensors on {figures['device']}": _memory_curve("tensors", memory["tensors"]),
        "The process, all that is resident": _memory_curve("process", memory["process"]),
    }
    fastest = max(rate["max"] for rate in figures["rates"].values())
    page = render(
        "profile.html",
        **figures,
        phases=phases_of(figures),
        fastest=fastest,
        charts={title: svg for title, svg in charts.items() if svg is not None},
        assumed=figures["plan"] and figures["plan"]["assumed"],
        yaml=yaml,
        trace=trace,
        rate=shown_rate,
    )
    write_atomically(path, page)


def phases_of(figures: Mapping[str, Any]) -> list[tuple[str, float]]:
    """(what to call it, share of a step), in the order of a step."""
    return [(_WORDS.get(name, name), share) for name, share in figures["shares"].items()]


def print_profile(figures: Mapping[str, Any], page: Path, console: Console) -> None:
    """Shares, rates, what binds, and what follows."""
    console.print(f"{figures['config']}: {figures['ms_a_step']:,.1f} ms a step under the profiler")
    table = Table(show_edge=False)
    table.add_column("phase")
    table.add_column("share", justify="right")
    for name, share in phases_of(figures):
        table.add_row(name, f"{share:.1%}")
    console.print(table)
    rates = {name: shown_rate(rate["median"]) for name, rate in figures["rates"].items()}
    console.print(
        f"images/s: loader {rates['loader']}, step {rates['step']}, end to end {rates['e2e']}"
    )
    for line in figures["advice"]:
        console.print(f"* {escape(line)}", soft_wrap=not console.is_terminal)
    if figures["plan"] is not None:
        line = f"estimate on paper: {figures['plan']['sentence']}"
        console.print(f"* {escape(line)}", soft_wrap=not console.is_terminal)
    console.print(f"report: {escape(str(page))}", soft_wrap=True)


def _memory_curve(name: str, points: Sequence[tuple[float, float]]) -> str | None:
    mib = [(at, held / 2**20) for at, held in points]
    return curve({name: mib}, "time, s", "memory, MiB")
