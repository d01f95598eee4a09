"""The page of a profile, one HTML file; and its table for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fastselfie.report.curves import line_chart
from fastselfie.report.render import format_rate, render
from fastselfie.system.files import write_atomically

_WORDS = {
    "waiting": "waiting for data",
    "copy": "copy to the device",
    "forward": "P, A and scoring, compiled together",
}


def write_profile_page(path: Path, figures: Mapping[str, Any], yaml: str, trace: str) -> None:
    """Write the page of a profile. It fetches nothing when it is opened.

    Args:
        path: Path of the page.
        figures: From `profile_config`.
        yaml: The config, as YAML.
        trace: Name of the trace file beside the page.
    """
    titles = {
        "tensors": f"Tensors on {figures['device']}",
        "process": "Resident memory of the process",
    }
    charts = {}
    for name, title in titles.items():
        mib = [(seconds, held / 2**20) for seconds, held in figures["memory"][name]]
        charts[title] = line_chart({name: mib}, "time, s", "memory, MiB")
    page = render(
        "profile.html",
        **figures,
        phases=named_phases(figures),
        fastest=max(rate["max"] for rate in figures["rates"].values()),
        charts={title: svg for title, svg in charts.items() if svg is not None},
        assumed=figures["plan"] and figures["plan"]["assumed"],
        yaml=yaml,
        trace=trace,
        rate=format_rate,
    )
    write_atomically(path, page)


def named_phases(figures: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Return (name for people, share of a step) of each phase, in the order of a step."""
    return [(_WORDS.get(name, name), share) for name, share in figures["shares"].items()]


def print_profile(figures: Mapping[str, Any], page: Path, console: Console) -> None:
    """Print phases, rates and advice to a terminal.

    Args:
        figures: From `profile_config`.
        page: Path of the page, printed below.
        console: Where to print.
    """
    console.print(f"{figures['config']}: {figures['ms_a_step']:,.1f} ms a step under the profiler")
    table = Table(show_edge=False)
    table.add_column("phase")
    table.add_column("share", justify="right")
    for name, share in named_phases(figures):
        table.add_row(name, f"{share:.1%}")
    console.print(table)
    rates = {name: format_rate(rate["median"]) for name, rate in figures["rates"].items()}
    console.print(
        f"images/s: loader {rates['loader']}, step {rates['step']}, end to end {rates['e2e']}"
    )
    lines = list(figures["advice"])
    if figures["plan"] is not None:
        lines.append(f"estimate on paper: {figures['plan']['sentence']}")
    for line in lines:
        console.print(f"* {escape(line)}", soft_wrap=not console.is_terminal)
    console.print(f"report: {escape(str(page))}", soft_wrap=True)
