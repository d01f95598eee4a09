"""`reproduce --dry-run`: every run, its steps and images, and how long all would take."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
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
from fastselfie.reproduce.control import has_result
from fastselfie.reproduce.plan import Group, Plan, Run
from fastselfie.reproduce.record import check_folders
from fastselfie.step import TrainStep

# Images of a step that is timed: cheap for any network; enough to keep a GPU busy.
_TIMED = {"cpu": 8, "cuda": 64}
_CLASSES = 1000  # where there are no images yet


class Rates(NamedTuple):
    """Images/s of a device in each stage. devices: those that train at a time. how: it is known."""

    pretrain: float
    finetune: float
    devices: int
    how: str


class Line(NamedTuple):
    """Runs that are alike: their number, of it those to do, steps, images with labels and seconds
    of those to do in all."""

    what: str
    runs: int
    to_do: int
    steps: int
    batch_size: int
    images: str
    seconds: float


def print_forecast(
    plan: Plan,
    out: Path,
    jobs: int | None,
    control: Path | None,
    target: Target | None,
    console: Console,
) -> None:
    """Touches nothing. control: as for `reproduce`. target: a machine to estimate for on paper;
    None: this one, by its steps.

    Raises:
        UserError: what `reproduce` would refuse; without images only what needs none.
    """
    machine = choose_machine(plan.config.runtime)
    try:
        dataset: Dataset | None = open_dataset(plan.config.data, plan.config.seed)
        missing = None
    except UserError as error:
        dataset, missing = None, str(error)
    pretrained = False
    if dataset is not None:
        plan.check(dataset)
        pretrained = check_folders(plan, dataset, machine, out, control)
    classes = _CLASSES if dataset is None else len(dataset.train.classes)
    if target is None:
        rates = measured_rates(plan.config, classes, machine, jobs)
    else:
        rates = Rates(*paper_rates(plan.config, classes, target), target.gpus, _on_paper(target))
    lines = forecast(plan, dataset, rates, pretrained, lambda run: has_result(run, out, control))
    table = Table(title=f"{plan.config.name}: what reproduce would do")
    for name in ("what", "runs", "steps each", "images a step", "trained on", "time"):
        table.add_column(name, justify="left" if name == "what" else "right")
    for line in lines:
        runs = f"{line.runs:,}" if line.to_do == line.runs else f"{line.to_do:,} of {line.runs:,}"
        sizes = (f"{line.steps:,}", f"{line.batch_size:,}", line.images)
        table.add_row(line.what, runs, *sizes, shown_time(line.seconds))
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
    known, to_do = sum(line.runs for line in lines), sum(line.to_do for line in lines)
    so_far = "" if known == to_do else f"{known - to_do:,} of them done, the others "
    spent = f"{so_far}{shown_time(total)}, {rates.how}"
    for text in (
        f"in all {known:,} runs, {spent if to_do else 'all done'}; training alone: measuring, "
        "checkpoints and starting come on top",
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


def forecast(
    plan: Plan,
    dataset: Dataset | None,
    rates: Rates,
    pretrained: bool = False,
    done: Callable[[Run], bool] = lambda run: False,
) -> list[Line]:
    """The pretraining, and for each share of the labels its search and its last runs.

    done: whether a run has a result; of a last run the rate is not known yet.
    """
    pretrain, finetune = plan.config.pretrain, plan.config.finetune

    def line(
        what: str, runs: int, to_do: int, stage: StageConfig, images: str, rate: float
    ) -> Line:
        # A run is on one device, the pretraining too.
        rounds = math.ceil(to_do / rates.devices)
        spent = rounds * stage.steps * stage.batch_size / rate
        return Line(what, runs, to_do, stage.steps, stage.batch_size, images, spent)

    def finetuning(what: str, runs: Sequence[Run], images: str) -> Line:
        to_do = sum(not done(run) for run in runs)
        return line(f"{what} at {labels:g}%", len(runs), to_do, finetune, images, rates.finetune)

    everything = "all" if dataset is None else f"{len(dataset.train):,}"
    lines = [line("pretraining", 1, int(not pretrained), pretrain, everything, rates.pretrain)]
    for labels in plan.labels:
        groups = [group for group in plan.groups if group.labels == labels]
        searches = [run for group in groups for run in plan.grid_searches(group)]
        known = f"{labels:g}%"
        if dataset is not None:
            known = f"{len(plan.labelled(dataset, labels)):,}"
        if searches:
            few = known if dataset is None else f"{_trained_on(plan, dataset, labels):,}"
            lines.append(finetuning("search", searches, few))
        finals = [run for group in groups for run in plan.finals(group, 1.0)]
        lines.append(finetuning("seeds", finals, known))
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
    timed = _TIMED[machine.device.type]
    small = {"batch_size": timed, "micro_batch_size": None}
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
    how = f"from steps of {timed} images on {machine.device} in {machine.precision.name}"
    return Rates(pretraining, _rate(finetuning, config, classes, 1), min(gpus, jobs or gpus), how)


def _rate(build: Callable[[], TrainStep], config: Config, classes: int, patches: int) -> float:
    """Images/s of the faster of two steps, after one that warms up."""
    step = build()
    images = step.stage.batch_size
    noise = NoSource(np.arange(images, dtype=np.int64) % classes, [str(i) for i in range(classes)])
    loader = SyntheticLoader(noise, config.data, config.seed, step.machine.device)
    spent = []
    with closing(loader.train(0, images, patches)) as batches:
        for number in range(3):
            batch, began = next(batches), time.perf_counter()
            step(number, batch)
            step.read()  # waits for the device
            spent.append(time.perf_counter() - began)
    return images / min(spent[1:])
