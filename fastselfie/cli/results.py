"""Commands that inspect a run or the machine: evaluate, report, doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastselfie.cli.app import app
from fastselfie.cli.options import AsJson, RunFolder
from fastselfie.cli.output import print_result, print_table
from fastselfie.errors import UserError


@app.command()
def evaluate(
    run: RunFolder,
    data: Annotated[
        str | None, typer.Option(help="Held-out images; default: those of the run's config.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure a run: accuracy of its classifiers, the pretext task, k-NN and linear probe of P."""
    from fastselfie.inference.evaluate_run import measure_run

    measures = measure_run(run, data)
    print_result(
        measures,
        as_json,
        lambda: (
            (network, measure.replace("_", " "), f"{v:.4f}" if "loss" in measure else f"{v:.1%}")
            for network, found in measures.items()
            for measure, v in found.items()
        ),
    )


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="A run's folder, or several to compare.")],
    out: Annotated[
        Path | None,
        typer.Option(help="The page; default: RUN/report.html, or compare.html for several runs."),
    ] = None,
    serve: Annotated[
        bool, typer.Option("--serve", help="Serve a live page on this machine instead.")
    ] = False,
    port: Annotated[
        int,
        typer.Option(metavar="PORT", min=0, max=65_535, help="With --serve; 0: a free port."),
    ] = 8000,
    as_json: AsJson = False,
) -> None:
    """Regenerate a run's HTML report, or compare several runs."""
    from fastselfie.report import serve as server
    from fastselfie.report.compare import compare_page
    from fastselfie.report.page import REFRESH, run_page
    from fastselfie.runs.folder import PAGE, read_run
    from fastselfie.runs.load import open_run
    from fastselfie.system.files import write_atomically

    def page(refresh: int) -> str:
        read = [read_run(run, open_run(run)) for run in runs]
        if len(read) == 1:
            return run_page(read[0], refresh=refresh)
        return compare_page(read, refresh if serve else None)

    if serve:
        if out is not None:
            raise UserError("--serve writes no file: remove --out or --serve")
        page(REFRESH)  # fail now, not at the first request, if a folder is not a run
        server.serve(lambda: page(server.REFRESH), port)
        return
    path = out or (runs[0] / PAGE if len(runs) == 1 else Path("compare.html"))
    write_atomically(path, page(REFRESH))
    print_result({"report": str(path)}, as_json)


@app.command()
def doctor() -> None:
    """Check this machine: what it has, what is missing and how to install it."""
    from rich.text import Text

    from fastselfie.runs.doctor import examine

    colours = {"ok": "green", "missing": "yellow", "bad": "red"}
    rows = [(f.name, Text(f.state, colours[f.state]), f.text, f.fix) for f in examine()]
    print_table(rows, ("item", "state", "found", "fix"))
