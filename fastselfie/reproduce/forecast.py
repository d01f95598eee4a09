"""`reproduce --dry-run`: print all trials, their steps and images, and the time they would take."""

from __future__ import annotations

import math
from collections import Counter
from contextlib import closing
from dataclasses import replace
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
from fastselfie.profiling.rates import measure_round
from fastselfie.report.render import format_duration
from fastselfie.reproduce.protocol import Protocol
from fastselfie.reproduce.provenance import check_folders
from fastselfie.reproduce.scheduler import Scheduler
from fastselfie.system.accelerator import Accelerator, choose_accelerator
from fastselfie.training.finetune import build_finetuning, finetuning_stage
from fastselfie.training.pretrain import build_pretraining
from fastselfie.training.step import TrainStep

# Images of a timed step: cheap for any network on a CPU, enough to keep a GPU busy.
_TIMED_BATCH = {"cpu": 8, "cuda": 64}
_TIMED_SECONDS = 0.5
_CLASSES = 1000  # assumed while there are no images


class ForecastRates(NamedTuple):
    """Throughput of one device.

    Attributes:
        pretrain: Images per second in pretraining.
        finetune: Images per second in finetuning.
        devices: Devices that run trials at the same time.
        how: How the rates are known, for the page.
    """

    pretrain: float
    finetune: float
    devices: int
    how: str


class ForecastRow(NamedTuple):
    """A row of the forecast: trials of one kind.

    Attributes:
        what: Kind of the trials.
        trials: Their number.
        done: How many of them are done.
        steps: Steps of each.
        batch_size: Images of a step.
        images: Number of training images, as text.
        seconds: Time of the remaining trials together.
    """

    what: str
    trials: int
    done: int
    steps: int
    batch_size: int
    images: str
    seconds: float


def print_forecast(
    protocol: Protocol,
    out: Path,
    jobs: int | None,
    control: Path | None,
    target: Target | None,
    console: Console,
) -> None:
    """Print what `reproduce` would do with the same arguments; write nothing.

    Args:
        protocol: See `reproduce`.
        out: See `reproduce`.
        jobs: See `reproduce`.
        control: See `reproduce`.
        target: Machine to estimate for; None: this one, measured by a few training steps.
        console: Where to print.

    Raises:
        UserError: What `reproduce` would refuse, except missing images.
    """
    config = protocol.config
    accelerator = choose_accelerator(config.runtime)
    dataset: Dataset | None = None
    conditions = [f"output {out}"]
    try:
        dataset = open_dataset(config.data, config.seed)
    except UserError as error:
        conditions.append(f"missing data: {error}")
    if dataset is not None:
        protocol.check(dataset)
        if dataset.warning:
            conditions.append(f"warning: {dataset.warning}")
    precision = accelerator.precision.name if target is None else None
    pretrained = check_folders(protocol, dataset, precision, out, control)
    scheduler = Scheduler(protocol, out, control)
    classes = _CLASSES if dataset is None else len(dataset.train.classes)
    if pretrained >= config.pretrain.steps and not scheduler.left:
        rates = ForecastRates(math.inf, math.inf, 1, "")
    elif target is None:
        rates = measured_rates(config, classes, accelerator, jobs)
    else:
        devices = min(target.gpus, jobs or target.gpus)
        how = f"estimated on paper for {target.gpus}x{target.name}, decoding not counted"
        rates = ForecastRates(*paper_rates(config, classes, target), devices, how)
    rows = forecast(scheduler, dataset, rates, pretrained)
    table = Table(title=f"{config.name}: what reproduce would do")
    for name in ("what", "to do", "steps each", "images a step", "trained on", "time"):
        table.add_column(name, justify="left" if name == "what" else "right")
    for row in rows:
        left = f"{row.trials - row.done:,} of {row.trials:,}" if row.done else f"{row.trials:,}"
        sizes = (f"{row.steps:,}", f"{row.batch_size:,}", row.images)
        table.add_row(row.what, left, *sizes, format_duration(row.seconds))
    console.print(table)
    seconds = rows[0].seconds + finetuning_rounds(scheduler, rates.devices) * seconds_each(
        protocol.config, rates
    )
    for text in [*_summary(protocol, rows, rates, seconds), *conditions]:
        console.print(escape(text), soft_wrap=True)


def _summary(
    protocol: Protocol, rows: list[ForecastRow], rates: ForecastRates, seconds: float
) -> list[str]:
    total, done = sum(row.trials for row in rows), sum(row.done for row in rows)
    time_left = "all done"
    if done < total:
        time_left = f"{done:,} of them done, the others " if done else ""
        time_left += (
            f"{format_duration(seconds)}, {rates.how}; training alone: evaluation, checkpoints and "
            "start-up take more"
        )
    starts = " and ".join(dict.fromkeys(arm.start for arm in protocol.arms))
    grid, widen = ", ".join(f"{lr:g}" for lr in protocol.grid), protocol.config.reproduce.widen
    if widen and len(protocol.grid) > 1:
        grid += f" and up to {widen} more beyond the grid if its edge is best"
    lines = [
        f"in all {total:,} runs, {time_left}",
        f"arms {starts}; rates {grid}; seeds {protocol.seeds[0]} to {protocol.seeds[-1]}",
    ]
    if rates.devices > 1:
        lines.append(
            "pretraining uses one of them; to use all, pretrain with torchrun first: see "
            "docs/reproduction.md"
        )
    return [*lines, f"steps x {protocol.budget:g} (--budget)"]


def forecast(
    scheduler: Scheduler, dataset: Dataset | None, rates: ForecastRates, pretrained: int
) -> list[ForecastRow]:
    """Return a row for pretraining, and rows for search and seed runs at each share of the labels.

    Args:
        scheduler: Says which trials there are, and which are done.
        dataset: The images; None if they are missing.
        rates: Throughput of a device.
        pretrained: Pretraining steps that are done.
    """
    protocol = scheduler.protocol
    pretrain, finetune = protocol.config.pretrain, protocol.config.finetune
    all_images = "all" if dataset is None else f"{len(dataset.train):,}"
    left = max(0, pretrain.steps - pretrained)
    seconds = left * pretrain.batch_size / rates.pretrain  # on one device
    sizes = (pretrain.steps, pretrain.batch_size)
    rows = [ForecastRow("pretraining", 1, int(left == 0), *sizes, all_images, seconds)]
    done = Counter((trial.arm.labels, trial.split is None) for trial in scheduler.results)

    def row(what: str, labels: float, seed_run: bool, trials: int, images: str) -> ForecastRow:
        finished = done[labels, seed_run]
        rounds = math.ceil((trials - finished) / rates.devices)
        seconds = rounds * seconds_each(protocol.config, rates)
        sizes = (finetune.steps, finetune.batch_size)
        return ForecastRow(f"{what} at {labels:g}%", trials, finished, *sizes, images, seconds)

    for labels in protocol.labels:
        arms = [arm for arm in protocol.arms if arm.labels == labels]
        searches = [trial for arm in arms for trial in scheduler.search(arm).trials]
        searched = labelled = f"{labels:g}%"
        if dataset is not None:
            labelled = f"{len(protocol.labelled(dataset, labels)):,}"
            if searches:
                searched = f"{len(protocol.images_for(searches[0], dataset).train):,}"
        if searches:
            rows.append(row("search", labels, False, len(searches), searched))
        rows.append(row("seeds", labels, True, len(arms) * len(protocol.seeds), labelled))
    return rows


def seconds_each(config: Config, rates: ForecastRates) -> float:
    """Return the seconds of one trial on one device."""
    return config.finetune.steps * config.finetune.batch_size / rates.finetune


def finetuning_rounds(scheduler: Scheduler, devices: int) -> int:
    """Return how many trials the busiest device runs; the seed runs of an arm wait for its search.

    All trials are equally long. So the devices work in rounds, each of the trials that are ready.
    """
    left = []
    for arm in scheduler.protocol.arms:
        done = [trial.split is None for trial in scheduler.results if trial.arm == arm]
        searching = len(scheduler.search(arm).trials) - done.count(False)
        left.append([searching, len(scheduler.protocol.seeds) - done.count(True)])
    rounds = 0
    while any(map(sum, left)):
        free = devices
        for counts in left:
            stage = 0 if counts[0] else 1
            taken = min(free, counts[stage])
            counts[stage] -= taken
            free -= taken
        rounds += 1
    return rounds


def measured_rates(
    config: Config, classes: int, accelerator: Accelerator, jobs: int | None
) -> ForecastRates:
    """Time training steps on random pixels on this machine.

    On a CPU several jobs count as one device, because they share it; GPUs count each.

    Args:
        config: Config of the reproduction.
        classes: Number of classes.
        accelerator: Device to train on.
        jobs: Number of processes that train; None: one per GPU.
    """
    timed = _TIMED_BATCH[accelerator.device.type]
    small = {"batch_size": timed, "micro_batch_size": None}
    changes = {
        "pretrain": config.pretrain.model_copy(update=small),
        "finetune": config.finetune.model_copy(update=small),
        "runtime": config.runtime.model_copy(update={"compile": "off", "cuda_graphs": False}),
    }
    config = config.model_copy(update=changes)
    accelerator = replace(accelerator, compile=None, why_eager=None)  # to compile takes minutes

    stage = finetuning_stage(config, "", from_p=False)
    pretrain = _rate(build_pretraining(config, accelerator).step, config, classes)
    finetune = _rate(
        build_finetuning(config, stage, classes, accelerator, None).step, config, classes
    )
    gpus = torch.cuda.device_count() if accelerator.device.type == "cuda" else 1
    how = f"from steps of {timed} images on {accelerator.device} in {accelerator.precision.name}"
    return ForecastRates(pretrain, finetune, min(gpus, jobs or gpus), how)


def _rate(step: TrainStep, config: Config, classes: int) -> float:
    """Return the images per second of a training step."""
    images = step.stage.batch_size
    noise = NoSource(np.arange(images, dtype=np.int64) % classes, [str(i) for i in range(classes)])
    data = config.data.model_copy(update={"loader": "synthetic"})
    loader = build_loader(noise, data, config.seed, step.accelerator.device)
    with closing(loader.stream(0, images)) as batches:
        measured = measure_round(batches, step, _TIMED_SECONDS)
    return measured.images / measured.seconds
