"""Commands that train: train, reproduce, profile, replay."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastselfie.cli.app import app
from fastselfie.cli.options import (
    Address,
    AsJson,
    ConfigFile,
    Engine,
    EngineName,
    Overrides,
    checked_by,
)
from fastselfie.cli.output import echo_json, print_result, training_rows
from fastselfie.errors import UserError
from fastselfie.stage_names import stages_to_run

if TYPE_CHECKING:
    from fastselfie.config import Config

Jobs = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="Concurrent runs on a machine, each on a GPU or a share of the cores; default: one "
        "per GPU, or 1.",
    ),
]
Control = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Take the supervised runs of a reproduction that differs only in pretraining.",
    ),
]
OutFolder = Annotated[Path | None, typer.Option(help="The run's folder; default: runs/NAME.")]


@app.command()
def train(
    config: ConfigFile,
    overrides: Overrides = None,
    stage: Annotated[
        str,
        typer.Option(
            metavar="[pretrain|finetuned|all]",
            callback=checked_by(stages_to_run),
            help="Which stages to run; finetuned takes what pretraining left in --out.",
        ),
    ] = "all",
    resume: Annotated[
        str,
        typer.Option(help="auto: resume the run in --out; never: start over; or a path."),
    ] = "auto",
    out: OutFolder = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan; write nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Pretrain, then finetune and train the supervised control.

    If interrupted, run the same command to resume.
    """
    settings, folder = _load(config, overrides, out)
    if dry_run:
        _refuse_json(as_json)
        from rich.console import Console

        from fastselfie.runs.dry_run import print_plan

        print_plan(settings, folder, Console(highlight=False), stage)
        return
    from fastselfie.report.live import LivePage
    from fastselfie.runs import train as run

    summary = run.train(settings, stage, resume, folder, LivePage)
    if summary is not None:  # None on every rank but 0
        print_result(summary, as_json, lambda: training_rows(summary, settings))


@app.command()
def reproduce(
    config: ConfigFile,
    overrides: Overrides = None,
    labels: Annotated[
        str, typer.Option(help="Percentages of the labels.", metavar="5,8,20,100")
    ] = "5,8,20,100",
    seeds: Annotated[
        int, typer.Option(min=1, help="Final runs per arm and share of the labels.")
    ] = 5,
    budget: Annotated[
        float, typer.Option(help="Factor for the steps of both stages, for example 0.1.")
    ] = 1.0,
    jobs: Jobs = None,
    out: OutFolder = None,
    control: Control = None,
    engine: Engine = EngineName.local,
    address: Address = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the runs and their time; write nothing.")
    ] = False,
    plan: Annotated[
        str | None,
        typer.Option(metavar="8xH100", help="With --dry-run: estimate the time on these GPUs."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Reproduce the paper's Table 1.

    Pretrain once, search learning rates, finetune, and train the supervised control. If
    interrupted, run the same command to resume; the pretraining may come from
    `train --stage pretrain`.
    """
    from rich.console import Console

    from fastselfie.reproduce.protocol import make_protocol

    settings, folder = _load(config, overrides, out)
    protocol = make_protocol(settings, labels, seeds, budget)
    if dry_run or plan is not None:
        _refuse_json(as_json)
        _refuse_timing_a_cluster(engine, plan)
        from fastselfie.profiling.estimate import parse_target
        from fastselfie.reproduce.forecast import print_forecast

        target = None if plan is None else parse_target(plan, 1)  # cores are not used
        print_forecast(protocol, folder, jobs, control, target, Console(highlight=False))
        return
    from fastselfie.reproduce.cost import FILE as COSTS
    from fastselfie.reproduce.execute import reproduce as carry_out
    from fastselfie.reproduce.table import PAGE, print_table
    from fastselfie.runs.folder import read_facts

    figures = carry_out(protocol, folder, jobs, control, engine.value, address)
    costs = read_facts(folder / COSTS)
    if not as_json:
        print_table(figures, folder / PAGE, Console(highlight=False), costs)
    echo_json({"rows": figures["rows"], "cost": costs, "table": str(folder / PAGE)}, as_json)


@app.command()
def profile(
    config: ConfigFile,
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(min=1, help="Pretraining steps to profile.")] = 20,
    out: Annotated[
        Path | None, typer.Option(help="The report's folder; default: runs/NAME/profile.")
    ] = None,
    plan: Annotated[
        str | None,
        typer.Option(metavar="8xH100", help="Also estimate the bottleneck on these GPUs."),
    ] = None,
    cores: Annotated[int | None, typer.Option(help="With --plan: its CPU cores.")] = None,
    as_json: AsJson = False,
) -> None:
    """Profile a few training steps: where the time goes, the bottleneck, and what to change.

    Writes profile.html, profile.json and trace.json.gz.
    """
    # Torch reads these when it is imported. They silence its profiler's own log.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from fastselfie.profiling.estimate import parse_target
    from fastselfie.profiling.run import PAGE, profile_config
    from fastselfie.report.profile import print_profile
    from fastselfie.system.console import console

    target = parse_target(plan, cores)
    settings, run = _load(config, overrides, None)
    folder = out or run / "profile"
    figures = profile_config(settings, steps, folder, target)
    print_profile(figures, folder / PAGE, console)
    keys = ("binding", "advice", "shares", "rates", "plan")
    echo_json({**{key: figures[key] for key in keys}, "report": str(folder / PAGE)}, as_json)


@app.command()
def replay(
    file: Annotated[Path, typer.Argument(help="A nonfinite-STEP.pt file of a run.")],
    as_json: AsJson = False,
) -> None:
    """Repeat the step at which a run stopped on a NaN or infinity, and find where it began."""
    from fastselfie.training.replay import replay_step

    found = replay_step(file)
    for line in found.lines() if not as_json else ():
        typer.echo(line)
    echo_json(found.summary(), as_json)


def _load(config: str, overrides: list[str] | None, out: Path | None) -> tuple[Config, Path]:
    """Return the config, and the run's folder."""
    from fastselfie.config.load import load_config

    settings = load_config(config, overrides or ())
    return settings, out or Path("runs") / settings.name


def _refuse_json(as_json: bool) -> None:
    if as_json:
        raise UserError("--json: a dry run has no JSON result: remove --json or --dry-run")


def _refuse_timing_a_cluster(engine: EngineName, plan: str | None) -> None:
    if engine is EngineName.ray and plan is None:
        raise UserError(
            "--engine ray: a dry run times this machine: remove it, or add --plan with the GPUs of "
            "the cluster"
        )
