"""`reproduce --dry-run`: all runs, their steps and images, and how long those to do would take."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fastselfie.config import Config
from fastselfie.data.dataset import Dataset, NoSource, open_dataset
from fastselfie.data.loaders import build_loader
from fastselfie.errors import UserError
from fastselfie.profiling.estimate import Target, paper_rates
from fastselfie.report.render import shown_time
from fastselfie.reproduce.protocol import Group, Plan
from fastselfie.reproduce.provenance import check_folders
from fastselfie.reproduce.scheduler import Agenda
from fastselfie.system.accelerator import Accelerator, choose_accelerator
from fastselfie.training.finetune import build_finetuning, finetuning_stage
from fastselfie.training.pretrain import build_pretraining
from fastselfie.training.step import TrainStep

# Images of a step that is timed: cheap for any network; enough to keep a GPU busy.
_TIMED = {"cpu": 8, "cuda": 64}
_CLASSES = 1000  # where there are no images yet


class ForecastRates(NamedTuple):
    """Images/s of a device in each stage. devices: those that train at a time. how: it is known."""

    pretrain: float
    finetune: float
    devices: int
    how: str


class Line(NamedTuple):
    """Runs that are alike: their number, those that are done, steps, images with labels, and the
    seconds of the others in all."""

    what: str
    runs: int
    done: int
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
        UserError: what `reproduce` would refuse, but for what needs images that are missing, or
            the machine of `target`.
    """
    accelerator = choose_accelerator(plan.config.runtime)
    try:
        dataset: Dataset | None = open_dataset(plan.config.data, plan.config.seed)
        missing = None
    except UserError as error:
        dataset, missing = None, str(error)
    if dataset is not None:
        plan.check(dataset)
    precision = accelerator.precision.name if target is None else None
    pretrained = check_folders(plan, dataset, precision, out, control)
    agenda = Agenda(plan, out, control)
    rates = ForecastRates(math.inf, math.inf, 1, "")
    if pretrained < plan.config.pretrain.steps or agenda.left:
        classes = _CLASSES if dataset is None else len(dataset.train.classes)
        rates = _rates(plan.config, classes, accelerator, jobs, target)
    lines = forecast(agenda, dataset, rates, pretrained)
    table = Table(title=f"{plan.config.name}: what reproduce would do")
    for name in ("what", "to do", "steps each", "images a step", "trained on", "time"):
        table.add_column(name, justify="left" if name == "what" else "right")
    for line in lines:
        runs = f"{line.runs - line.done:,} of {line.runs:,}" if line.done else f"{line.runs:,}"
        sizes = (f"{line.steps:,}", f"{line.batch_size:,}", line.images)
        table.add_row(line.what, runs, *sizes, shown_time(line.seconds))
    console.print(table)
    conditions = _conditions(plan, lines, rates)
    conditions.append(f"output {out}")
    if missing is not None:
        conditions.append(f"missing data: {missing}")
    if dataset is not None and dataset.warning:
        conditions.append(f"warning: {dataset.warning}")
    for text in conditions:
        console.print(escape(text), soft_wrap=True)


def _conditions(plan: Plan, lines: list[Line], rates: ForecastRates) -> list[str]:
    known, done = sum(line.runs for line in lines), sum(line.done for line in lines)
    so_far = f"{done:,} of them done, the others " if done else ""
    spent = (
        f"{so_far}{shown_time(sum(line.seconds for line in lines))}, {rates.how}; training alone: "
        "measuring, checkpoints and starting come on top"
    )
    arms = " and ".join(dict.fromkeys(group.arm for group in plan.groups))
    grid, widen = ", ".join(f"{lr:g}" for lr in plan.grid), plan.config.reproduce.widen
    if widen and len(plan.grid) > 1:
        grid += f" and up to {widen} more beyond an end that is the best"
    found = [
        f"in all {known:,} runs, {'all done' if known == done else spent}",
        f"arms {arms}; rates {grid}; seeds {plan.seeds[0]} to {plan.seeds[-1]}",
    ]
    if rates.devices > 1:
        found.append(
            "the pretraining on one of them; by torchrun before, on all: see docs/reproduction.md"
        )
    return [*found, f"steps x {plan.budget:g} (--budget)"]


def forecast(
    agenda: Agenda, dataset: Dataset | None, rates: ForecastRates, pretrained: int
) -> list[Line]:
    """The pretraining, and for each share of the labels its search and its last runs.

    pretrained: steps that are done.
    """
    plan = agenda.plan
    pretrain, finetune = plan.config.pretrain, plan.config.finetune
    everything = "all" if dataset is None else f"{len(dataset.train):,}"
    left = max(0, pretrain.steps - pretrained)
    spent = left * pretrain.batch_size / rates.pretrain  # on one device
    whole = int(left == 0)
    lines = [Line("pretraining", 1, whole, pretrain.steps, pretrain.batch_size, everything, spent)]
    # Those of a last run are known by its split, which is None.
    done = Counter((run.group.labels, run.split is None) for run in agenda.results)

    def finetuning(what: str, labels: float, last: bool, runs: int, images: str) -> Line:
        rounds = math.ceil((runs - done[labels, last]) / rates.devices)
        spent = rounds * finetune.steps * finetune.batch_size / rates.finetune
        sizes = (finetune.steps, finetune.batch_size)
        return Line(f"{what} at {labels:g}%", runs, done[labels, last], *sizes, images, spent)

    for labels in plan.labels:
        groups = [group for group in plan.groups if group.labels == labels]
        searches = sum(len(agenda.searches(group)) for group in groups)
        known = f"{labels:g}%"
        if dataset is not None:
            known = f"{len(plan.labelled(dataset, labels)):,}"
        if searches:
            few = known if dataset is None else f"{_trained_on(plan, dataset, labels):,}"
            lines.append(finetuning("search", labels, False, searches, few))
        last = len(groups) * len(plan.seeds)
        lines.append(finetuning("seeds", labels, True, last, known))
    return lines


def _trained_on(plan: Plan, dataset: Dataset, labels: float) -> int:
    run = plan.grid_searches(Group(labels, plan.groups[0].arm))[0]
    return len(plan.images_for(run, dataset).train)


def _rates(
    config: Config, classes: int, accelerator: Accelerator, jobs: int | None, target: Target | None
) -> ForecastRates:
    if target is None:
        return measured_rates(config, classes, accelerator, jobs)
    devices = min(target.gpus, jobs or target.gpus)
    return ForecastRates(*paper_rates(config, classes, target), devices, _on_paper(target))


def _on_paper(target: Target) -> str:
    return f"estimated on paper for {target.gpus}x{target.name}, decoding not counted"


def measured_rates(
    config: Config, classes: int, accelerator: Accelerator, jobs: int | None
) -> ForecastRates:
    """Of steps of few images on this machine, random pixels.

    jobs share a CPU, which is not faster for that by itself; GPUs work side by side.
    """
    timed = _TIMED[accelerator.device.type]
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
        return build_finetuning(config, stage, classes, accelerator, None).step

    pretraining = _rate(lambda: build_pretraining(config, accelerator).step, config, classes)
    gpus = torch.cuda.device_count() if accelerator.device.type == "cuda" else 1
    how = f"from steps of {timed} images on {accelerator.device} in {accelerator.precision.name}"
    return ForecastRates(
        pretraining, _rate(finetuning, config, classes), min(gpus, jobs or gpus), how
    )


def _rate(build: Callable[[], TrainStep], config: Config, classes: int) -> float:
    """Images/s of the faster of two steps, after one that warms up."""
    step = build()
    images = step.stage.batch_size
    noise = NoSource(np.arange(images, dtype=np.int64) % classes, [str(i) for i in range(classes)])
    data = config.data.model_copy(update={"loader": "synthetic"})
    loader = build_loader(noise, data, config.seed, step.accelerator.device)
    spent = []
    with closing(loader.stream(0, images)) as batches:
        for number in range(3):
            batch, began = next(batches), time.perf_counter()
            step(number, batch)
            step.read()  # waits for the device
            spent.append(time.perf_counter() - began)
    return images / min(spent[1:])
