"""Commands about what was trained, and about the machine: evaluate, doctor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fastselfie.cli.app import app


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run's folder, for example runs/quickstart.")],
    data: Annotated[
        str | None, typer.Option(help="Held-out images; default: those of the run's config.")
    ] = None,
) -> None:
    """Top-1 and top-5 of the finetuned networks; k-NN and linear probe of P's features.

    The last line on standard output is JSON.
    """
    from fastselfie.measure import measure_run

    typer.echo(json.dumps(measure_run(run, data)))


@app.command()
def doctor() -> None:
    """What this machine has, what is missing, and the command that mends it."""
    from rich.console import Console
    from rich.table import Table

    from fastselfie.doctor import examine

    findings = examine()
    table = Table(show_edge=False)
    for column in ("what", "state", "found", "mend it with"):
        table.add_column(column, overflow="fold")
    colours = {"ok": "green", "missing": "yellow", "bad": "red"}
    for finding in findings:
        state = f"[{colours[finding.state]}]{finding.state}[/]"
        table.add_row(finding.name, state, finding.text, finding.mend.replace("[", r"\["))
    Console(highlight=False).print(table)
