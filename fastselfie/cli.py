"""The command line, the only file that parses argv. Each command imports what it needs itself.

Exit status: 0 done, 2 the user's mistake (one line), 1 a fault of ours (a traceback), 130, 143 and
138 left at a whole step after Ctrl-C, SIGTERM and SIGUSR1.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from dataclasses import replace
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


_INTERRUPTED = 130  # the exit status of a program that SIGINT ended


class StageName(str, Enum):
    """Which part of a run `train` does."""

    pretrain = "pretrain"
    finetune = "finetune"
    all = "all"


class Subsampling(str, Enum):
    """What `prepare` does with the chroma of JPEGs."""

    keep = "keep"
    half = "420"


class OnError(str, Enum):
    """What `prepare` does with an image that cannot be read."""

    stop = "raise"
    skip = "skip"


class Part(str, Enum):
    """Which part of a set `prepare` takes."""

    train = "train"
    test = "test"


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
        summary = run.train(settings, stage.value, resume, folder)
    except Interrupted as left:
        raise typer.Exit(128 + left.number) from None
    if summary is not None:  # as it is where another process leads
        typer.echo(json.dumps(summary))


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
def prepare(
    source: Annotated[
        Path | None,
        typer.Argument(
            metavar="[SOURCE]",
            help="Image folder (sub-folders are classes, or none), CIFAR, ImageNet 32x32 or IDX "
            "folder, WebDataset .tar, Hugging Face .parquet (or a folder of those), or a .beton.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.beton", help="The file to make.")
    ] = None,
    check: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Verify a .beton file instead.")
    ] = None,
    part: Annotated[Part, typer.Option(help="Of a source that has both.")] = Part.train,
    max_side: Annotated[
        int | None, typer.Option(help="Pixels; larger images are made smaller.")
    ] = None,
    quality: Annotated[
        int | None,
        typer.Option(help="Encode every image anew. Default: keep JPEGs without loss, 95 else."),
    ] = None,
    subsampling: Annotated[
        Subsampling, typer.Option(help="420: encode images with more chroma anew.")
    ] = Subsampling.keep,
    apply_orientation: Annotated[
        bool, typer.Option("--apply-orientation", help="Turn images as EXIF says.")
    ] = False,
    on_error: Annotated[
        OnError, typer.Option(help="skip: leave unreadable images out, list them beside the file.")
    ] = OnError.stop,
    workers: Annotated[int | None, typer.Option(help="Processes; default one a core.")] = None,
    page_size: Annotated[
        int | None, typer.Option(help="Bytes, a power of two; the largest image that fits.")
    ] = None,
    shard: Annotated[
        str | None, typer.Option(metavar="K/N", help="Only the K-th of N parts; then `join`.")
    ] = None,
) -> None:
    """Turn a set of images into one .beton file, which the fast loaders read; goes on by itself.

    JPEGs keep every coefficient unless an option asks for another size or quality. The last line
    on standard output is JSON.
    """
    from fastselfie.data import prepare as preparing
    from fastselfie.data.encode import Recoding

    if check is not None:
        if source is not None or out is not None:
            raise UserError(f"--check {check}: verifies one file, leave out SOURCE and --out")
        _check_beton(check)
        return
    if source is None or out is None:
        raise UserError("prepare: give SOURCE and --out FILE.beton, or --check FILE")
    recoding = Recoding(max_side, quality, subsampling.value, apply_orientation)
    options = preparing.Options(recoding, part.value, workers, on_error.value)
    if page_size is not None:
        options = replace(options, page_size=page_size)
    if shard is not None:
        options = replace(options, shard=_parse_shard(shard))
    typer.echo(json.dumps(preparing.prepare(source, out, options)))


def _parse_shard(text: str) -> tuple[int, int]:
    shard, slash, shards = text.partition("/")
    if not (slash and shard.isdecimal() and shards.isdecimal()):
        raise UserError(f"--shard {text}: give K/N, the K-th of N parts")
    return int(shard), int(shards)


@app.command()
def join(
    parts: Annotated[list[Path], typer.Argument(help="All files of `prepare --shard K/N`.")],
    out: Annotated[Path, typer.Option(metavar="FILE.beton", help="The file to make.")],
) -> None:
    """Join the parts that several machines prepared: the file that one would have made.

    The last line on standard output is JSON.
    """
    from fastselfie.data import join as joining

    typer.echo(json.dumps(joining.join(parts, out)))


def _check_beton(path: Path) -> None:
    from fastselfie.data.prepare import check

    problems = 0
    for line in check(path):
        typer.echo(line)
        problems += 1
    if problems:
        raise UserError(f"{path}: {problems} problems found: copy or prepare it again")
    typer.echo(f"{path}: no problem found")


@app.command()
def profile(
    config: Annotated[Path, typer.Argument(help="A YAML file, for example configs/in224.yaml.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[key=value]...", help="Replace values.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Pretraining steps under the profiler.")] = 20,
    out: Annotated[
        Path | None, typer.Option(help="The report's folder; default runs/NAME/profile.")
    ] = None,
    plan: Annotated[
        str | None,
        typer.Option(metavar="8xH100", help="Estimate on paper where these GPUs would bind."),
    ] = None,
    cores: Annotated[int | None, typer.Option(help="With --plan: its CPU cores.")] = None,
) -> None:
    """Run a few real steps and report where their time goes, which part binds and what follows.

    Writes profile.html, profile.json and trace.json.gz. The last line on standard output is JSON.
    """
    # Read where torch is loaded: its profiler's own lines say nothing to a user.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from fastselfie.configfile import load_config
    from fastselfie.log import console
    from fastselfie.profiling.estimate import parse_target
    from fastselfie.profiling.run import PAGE, profile_config
    from fastselfie.report.profile import print_profile

    target = parse_target(plan, cores)
    settings = load_config(config, overrides or ())
    folder = out or Path("runs") / settings.name / "profile"
    figures = profile_config(settings, steps, folder, target)
    print_profile(figures, folder / PAGE, console)
    kept = ("binding", "advice", "shares", "rates", "plan")
    summary = {key: figures[key] for key in kept}
    typer.echo(json.dumps({**summary, "report": str(folder / PAGE)}))


@app.command()
def replay(
    file: Annotated[Path, typer.Argument(help="A nonfinite-STEP.pt that a run left.")],
) -> None:
    """Run the step again at which a run stopped because it was not finite, and say where it broke.

    The last line on standard output is JSON.
    """
    from fastselfie.replay import replay_step

    found = replay_step(file)
    for line in found.lines():
        typer.echo(line)
    typer.echo(json.dumps(found.summary()))


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
    except KeyboardInterrupt:
        sys.exit(_interrupted())
    except SystemExit as left:
        if left.code == _INTERRUPTED:  # typer's, in silence, where Ctrl-C reached it first
            _interrupted()
        raise


def _interrupted() -> int:
    typer.echo("interrupted: run the same command to go on", err=True)
    return _INTERRUPTED


def _leave(message: str) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    sys.exit(2)
