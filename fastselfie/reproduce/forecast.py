"""`reproduce --dry-run`: every run, its steps and images, and how long all would take."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fastselfie.config import Config, StageConfig
from fastselfie.data.loaders import SyntheticLoader
from fastselfie.data.sources import Dataset, NoSource, open_dataset
from fastselfie.device import Machine, choose_machine
from fastselfie.errors import UserError
from fastselfie.finetune import build_finetuning, finetuning_stage
from fastselfie.pretrain import build_pretraining
from fastselfie.profiling.estimate import Target, paper_rates
from fastselfie.report.render import shown_time
from fastselfie.reproduce.plan import Group, Plan
from fastselfie.step import TrainStep

_TIMED = 8  # images of a step that is timed: cheap for any network, on any machine
_CLASSES = 1000  # where there are no images yet


class Rates(NamedTuple):
    """Images/s of a device in each stage. devices: those that train at a time. how: it is known."""

    pretrain: float
    finetune: float
    devices: int
    how: str


class Line(NamedTuple):
    """Runs that are alike: their number, steps, images with labels and seconds in all."""

    what: str
    runs: int
    steps: int
    batch_size: int
    images: str
    seconds: float


def print_forecast(
    plan: Plan, out: Path, jobs: int | None, target: Target | None, console: Console
) -> None:
    """Touches nothing. target: a machine to estimate for on paper; None: this one, by its steps."""
    machine = choose_machine(plan.config.runtime)
    try:
        dataset: Dataset | None = open_dataset(plan.config.data, plan.config.seed)
        missing = None
    except UserError as error:
        dataset, missing = None, str(error)
    if dataset is not None:
        plan.check(dataset)
    classes = _CLASSES if dataset is None else len(dataset.train.classes)
    if target is None:
        rates = measured_rates(plan.config, classes, machine, jobs)
    else:
        rates = Rates(*paper_rates(plan.config, classes, target), target.gpus, _on_paper(target))
    lines = forecast(plan, dataset, rates)
    table = Table(title=f"{plan.config.name}: what reproduce would do")
    for name in ("what", "runs", "steps each", "images a step", "trained on", "time"):
        table.add_column(name, justify="left" if name == "what" else "right")
    for line in lines:
        sizes = (f"{number:,}" for number in (line.runs, line.steps, line.batch_size))
        table.add_row(line.what, *sizes, line.images, shown_time(line.seconds))
    console.print(table)
    total = sum(line.seconds for line in lines)
    arms = " and ".join(dict.fromkeys(group.arm for group in plan.groups))
    seeds, grid = plan.seeds, ", ".join(f"{lr:g}" for lr in plan.grid)
    widen = plan.config.reproduce.widen
    beyond = (
        f" and up to {widen} more beyond an end that is the best"
        if widen and len(plan.grid) > 1
        else ""
    )
    for text in (
        f"in all {sum(line.runs for line in lines):,} runs, {shown_time(total)}, {rates.how}; "
        "training alone: measuring, checkpoints and starting come on top",
        f"arms {arms}; rates {grid}{beyond}; seeds {seeds[0]} to {seeds[-1]}",
        *(
            ["the pretraining on one of them; by torchrun before, on all: see docs/reproduction.md"]
            if rates.devices > 1
            else []
        ),
        f"steps x {plan.budget:g} (--budget)",
        f"output {out}",
        *([f"missing data: {missing}"] if missing else []),
    ):
        console.print(escape(text), soft_wrap=True)


def forecast(plan: Plan, dataset: Dataset | None, rates: Rates) -> list[Line]:
    """The pretraining, and for each share of the labels its search and its last runs."""
    pretrain, finetune = plan.config.pretrain, plan.config.finetune

    def line(what: str, runs: int, stage: StageConfig, images: str, rate: float) -> Line:
        # A run is on one device, the pretraining too.
        rounds = math.ceil(runs / rates.devices)
        spent = rounds * stage.steps * stage.batch_size / rate
        return Line(what, runs, stage.steps, stage.batch_size, images, spent)

    everything = "all" if dataset is None else f"{len(dataset.train):,}"
    lines = [line("pretraining", 1, pretrain, everything, rates.pretrain)]
    for labels in plan.labels:
        groups = [group for group in plan.groups if group.labels == labels]
        searches = [run for group in groups for run in plan.grid_searches(group)]
        known = f"{labels:g}%"
        if dataset is not None:
            known = f"{len(plan.labelled(dataset, labels)):,}"
        if searches:
            few = known if dataset is None else f"{_trained_on(plan, dataset, labels):,}"
            lines.append(
                line(f"search at {labels:g}%", len(searches), finetune, few, rates.finetune)
            )
        count = len(groups) * len(plan.seeds)
        lines.append(line(f"seeds at {labels:g}%", count, finetune, known, rates.finetune))
    return lines


def _trained_on(plan: Plan, dataset: Dataset, labels: float) -> int:
    run = plan.grid_searches(Group(labels, plan.groups[0].arm))[0]
    return len(plan.images_for(run, dataset).train)


def _on_paper(target: Target) -> str:
    return f"estimated on paper for {target.gpus}x{target.name}, decoding not counted"


def measured_rates(config: Config, classes: int, machine: Machine, jobs: int | None) -> Rates:
    """Of steps of few images on this machine, random pixels.

    jobs share a CPU, which is not faster for that by itself; GPUs work side by side.
    """
    small = {"batch_size": _TIMED, "micro_batch_size": None}
    config = config.model_copy(
        update={
            "pretrain": config.pretrain.model_copy(update=small),
            "finetune": config.finetune.model_copy(update=small),
            "runtime": config.runtime.model_copy(update={"compile": "off", "cuda_graphs": False}),
        }
    )

    def finetuning() -> TrainStep:
        stage = finetuning_stage(config, "", from_p=False)
        return build_finetuning(config, stage, classes, machine, None).step

    pretraining = _rate(
        lambda: build_pretraining(config, machine).step, config, classes, config.patches
    )
    gpus = torch.cuda.device_count() if machine.device.type == "cuda" else 1
    how = f"from steps of {_TIMED} images on {machine.device} in {machine.precision.name}"
    return Rates(pretraining, _rate(finetuning, config, classes, 1), min(gpus, jobs or gpus), how)


def _rate(build: Callable[[], TrainStep], config: Config, classes: int, patches: int) -> float:
    """Images/s of the faster of two steps, after one that warms up."""
    step = build()
    noise = NoSource(np.arange(_TIMED, dtype=np.int64) % classes, [str(i) for i in range(classes)])
    loader = SyntheticLoader(noise, config.data, config.seed, step.machine.device)
    spent = []
    with closing(loader.train(0, _TIMED, patches)) as batches:
        for number in range(3):
            batch, began = next(batches), time.perf_counter()
            step(number, batch)
            step.read()  # waits for the device
            spent.append(time.perf_counter() - began)
    return _TIMED / min(spent[1:])
