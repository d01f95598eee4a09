"""The command line, the only file that parses argv. Each command imports what it needs itself.

Exit status: 0 done, 2 the user's mistake (one line), 1 a fault of ours (a traceback), 130 and 143
left at a whole step after Ctrl-C and SIGTERM.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from fastselfie import __version__
from fastselfie.errors import UserError

app = typer.Typer(
    name="fastselfie",
    help="Selfie pretraining (arXiv 1906.02940): train, evaluate, and see what it learned.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


class StageName(str, Enum):
    """Which part of a run `train` does."""

    pretrain = "pretrain"
    finetune = "finetune"
    all = "all"


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print and leave.")
    ] = False,
) -> None:
    del version


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="A YAML file, for example configs/in224.yaml.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[key=value]...", help="Replace values.")
    ] = None,
    stage: Annotated[StageName, typer.Option(help="Which stages to run.")] = StageName.all,
    resume: Annotated[
        str, typer.Option(help="auto: go on from --out; never: anew; or a run or checkpoint.")
    ] = "auto",
    out: Annotated[Path | None, typer.Option(help="The run's folder; default runs/NAME.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be done; touch nothing.")
    ] = False,
) -> None:
    """Pretrain, then finetune and train the control, as CONFIG says; goes on by itself.

    The last line on standard output is JSON with the run's figures.
    """
    from fastselfie.configfile import load_config

    settings = load_config(config, overrides or ())
    folder = out or Path("runs") / settings.name
    if dry_run:
        from rich.console import Console

        from fastselfie.plan import print_plan

        print_plan(settings, folder, Console(highlight=False))
        return
    from fastselfie import run
    from fastselfie.interrupt import Interrupted

    try:
        typer.echo(json.dumps(run.train(settings, stage.value, resume, folder)))
    except Interrupted as left:
        raise typer.Exit(128 + left.number) from None
    except KeyboardInterrupt:
        typer.echo("interrupted: run the same command to go on", err=True)
        raise typer.Exit(130) from None


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


def main() -> None:
    """Run the command line; a user's mistake is one line on standard error and status 2."""
    # Read when torch loads OpenMP, so set before any command imports it. A thread that waits by
    # spinning takes its core from whoever it waits for, a decoder or another program: with both
    # cores shared, the quickstart's step was four times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app()
    except UserError as error:
        _leave(str(error))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        where = f"{error.filename}: " if error.filename else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        way_out = "make room, or choose another --out" if full else "check its permissions"
        _leave(f"{where}{os.strerror(error.errno)}: {way_out}")


def _leave(message: str) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    sys.exit(2)
