"""A run: its folder, its stages in order, its summary and its page."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from fastselfie.config import Config
from fastselfie.data.dataset import Dataset, class_warning, open_dataset
from fastselfie.data.loaders import choose_loader
from fastselfie.data.splits import keep_labels
from fastselfie.errors import UserError
from fastselfie.models.selfie import Selfie
from fastselfie.runs.doctor import environment
from fastselfie.runs.folder import (
    CLASSES,
    CONFIG,
    ENVIRONMENT,
    FINETUNED,
    PAGE,
    PRETRAIN,
    SUMMARY,
    SUPERVISED,
)
from fastselfie.runs.load import load_pretrained, open_run
from fastselfie.system.accelerator import Accelerator, choose_accelerator
from fastselfie.system.console import console, say
from fastselfie.system.distributed import Ranks
from fastselfie.system.files import write_atomically
from fastselfie.system.lock import LOCK, exclusive_lock
from fastselfie.system.rendezvous import init_distributed, restarted
from fastselfie.training.checkpoint import (
    LATEST,
    has_checkpoints,
    load_checkpoint,
    newest_checkpoint,
)
from fastselfie.training.finetune import few_labels, finetune, finetuning_stage, labelled
from fastselfie.training.metrics_log import Show, read_log
from fastselfie.training.pretrain import pretrain, pretraining_stage
from fastselfie.training.state import Stage
from fastselfie.training.trackers import WANDB_ID, require_wandb

# Opens a page that follows a run: of its config, its folder and whether this process is rank 0.
OpenPage = Callable[[Config, Path, bool], AbstractContextManager[Show]]


def no_page(config: Config, out: Path, is_main: bool) -> AbstractContextManager[Show]:
    """Write no page while a run trains."""
    return nullcontext(lambda: None)


def train(
    config: Config, stage: str, resume: str, out: Path, open_page: OpenPage = no_page
) -> dict[str, Any] | None:
    """Run the stages into `out`, going on from what is there; return the summary.

    Of several processes each calls it; those that only follow rank 0 return None.

    stage: pretrain, finetune or all. resume: auto goes on from the checkpoints in `out`; never
    moves an earlier run aside first; a path starts from a copy of that run or checkpoint.
    open_page: `LivePage`, to follow the run in a browser.

    Raises:
        UserError: see the stages; or `finetune` where nothing was pretrained. All that can be
            known before the first step is found before it, and leaves `out` as it was.
    """
    began = time.time()
    ranks = init_distributed(config.runtime)
    if restarted():
        resume = "auto"  # what `never` moved aside, or a path copied, is done
    console.quiet = not ranks.is_main
    with ExitStack() as held:
        with ranks.raise_together():
            accelerator, dataset = _open(config, stage, resume, out, ranks, held)
        ranks.require_same(
            dataset.fingerprint(),
            f"{config.data.train}: other images on another machine: data.train and data.test must "
            "be the same on all",
        )
        return _run_stages(config, dataset, stage, out, accelerator, began, open_page)


def _run_stages(
    config: Config,
    dataset: Dataset,
    stage: str,
    out: Path,
    accelerator: Accelerator,
    began: float,
    open_page: OpenPage,
) -> dict[str, Any] | None:
    """Train, with the run's page as it goes; return the summary where this process leads."""
    measures: dict[str, dict[str, float]] = {}
    with open_page(config, out, accelerator.ranks.is_main) as show:
        if stage == "finetune":
            read = partial(load_pretrained, config, out / PRETRAIN, whole=True)
            network = accelerator.ranks.broadcast_from_main(read)
        else:
            network, measures[PRETRAIN] = pretrain(
                config, dataset, out / PRETRAIN, accelerator, show
            )
        if stage != PRETRAIN:
            arms: list[tuple[str, Selfie | None]] = [(FINETUNED, network)]
            if config.finetune.control:
                arms.append((SUPERVISED, None))
            for name, start in arms:
                few = few_labels(config, dataset)
                measures[name] = finetune(config, few, out / name, accelerator, start, show)
        return _conclude(out, measures, time.time() - began) if accelerator.ranks.is_main else None


def _open(
    config: Config, stage: str, resume: str, out: Path, ranks: Ranks, held: ExitStack
) -> tuple[Accelerator, Dataset]:
    """Find every mistake that can be known before the first step, then prepare `out`.

    held: keeps other processes out of `out` until it is closed.
    """
    accelerator = choose_accelerator(config.runtime, ranks)
    _check_processes(config, stage, accelerator)
    dataset = open_dataset(config.data, config.seed, labels_needed=stage != PRETRAIN)
    chosen = labelled(config, dataset) if stage != PRETRAIN else None
    if ranks.is_main:
        require_wandb(config.log)
        _announce(config, stage, accelerator, dataset, 0 if chosen is None else len(chosen))
        stages = _stages(config, dataset)
        _prepare_folder(out, resume, stages)
        held.enter_context(exclusive_lock(out))
        if chosen is not None:
            if not any(has_checkpoints(out / name) for name in stages):
                (out / "labels.txt").unlink(missing_ok=True)  # of a start that trained nothing
            keep_labels(out / "labels.txt", chosen, dataset.train.labels, config.seed)
        write_atomically(out / CLASSES, json.dumps(list(dataset.train.classes)) + "\n")
        write_atomically(out / CONFIG, config.to_yaml())
        facts = json.dumps(environment(accelerator.device), indent=1)
        write_atomically(out / ENVIRONMENT, facts + "\n")
    return accelerator, dataset


def _check_processes(config: Config, stage: str, accelerator: Accelerator) -> None:
    """Whether so many processes can train by this config.

    Raises:
        UserError: the first key that they cannot keep to.
    """
    ranks = accelerator.ranks
    if config.model.sync_batch_norm and ranks.world > 1 and accelerator.device.type != "cuda":
        raise UserError(
            "model.sync_batch_norm is true, which torch has for GPUs only: set it to false, or "
            "start one process"
        )
    for name, settings in ((PRETRAIN, config.pretrain), ("finetune", config.finetune)):
        if stage not in (name, "all"):
            continue
        part = ranks.share_of(settings.batch_size, f"{name}.batch_size")
        micro = min(settings.micro_batch_size or part, part)
        if part % micro:
            raise UserError(
                f"{name}.micro_batch_size is {micro}: it must divide the {part} images of "
                f"{name}.batch_size = {settings.batch_size} that each of {ranks.world} processes "
                "takes"
            )


def _stages(config: Config, dataset: Dataset) -> dict[str, Stage]:
    """What each checkpoint of a run must agree with."""
    return {
        PRETRAIN: pretraining_stage(config, dataset),
        FINETUNED: finetuning_stage(config, dataset.fingerprint(), from_p=True),
        SUPERVISED: finetuning_stage(config, dataset.fingerprint(), from_p=False),
    }


def _prepare_folder(out: Path, resume: str, stages: dict[str, Stage]) -> None:
    """Make `out` ready to go on in, or refuse and leave it as it was."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file: give another --out")
    source = out if resume in ("auto", "never") else Path(resume)
    if resume != "never":
        for name, stage in stages.items():
            found = newest_checkpoint(source / name, name, quiet=True)  # the stage will say it
            if found is not None:
                stage.check(found.state, found.path)
    if resume == "never" and out.exists():
        whole = out.resolve()
        aside = whole.with_name(f"{whole.name}.{time.strftime('%Y%m%d-%H%M%S')}")
        with exclusive_lock(out):
            os.rename(whole, aside)
        say(f"moved the earlier run to {aside}")
    elif source != out:
        _copy_run(source, out, stages)


def _copy_run(source: Path, out: Path, stages: dict[str, Stage]) -> None:
    """Take the checkpoints and logs of another run, or one checkpoint, into `out`."""
    if not source.exists():
        raise UserError(f"{source}: no such run or checkpoint to resume from")
    if out.exists() and source.resolve() == out.resolve():
        return
    if any(has_checkpoints(out / name) for name in stages):
        raise UserError(f"{out}: has checkpoints of its own: use --resume auto or another --out")
    if source.is_dir():
        open_run(source)  # refuses a folder that is not a run
        # A run of its own, on W&B too.
        ignored = shutil.ignore_patterns(LOCK, WANDB_ID, "wandb")
        shutil.copytree(source, out, dirs_exist_ok=True, ignore=ignored)
        return
    state = load_checkpoint(source)
    if state["kind"] not in stages:
        raise UserError(f"{source}: a checkpoint of an unknown stage, {state['kind']!r}")
    stages[state["kind"]].check(state, source)
    target = out / state["kind"] / LATEST
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target)


def _announce(
    config: Config, stage: str, accelerator: Accelerator, dataset: Dataset, labels: int
) -> None:
    data = config.data if stage == "finetune" else config.pretraining_data
    loader, why = choose_loader(data, dataset.train, accelerator.device)
    labelled_text = f", {labels:,} of them with labels" if labels else ""
    world = accelerator.ranks.world
    several = f"{world} processes, " if world > 1 else ""
    for line in (
        f"{config.name}: {several}device {accelerator.device} ({accelerator.why}), precision "
        f"{accelerator.precision.name} ({accelerator.precision.why}), loader {loader} ({why})",
        f"{len(dataset.train):,} training images{labelled_text}, {len(dataset.held_out):,} held "
        f"out ({dataset.split}), {len(dataset.train.classes)} classes",
        class_warning(dataset.train, config.data.train or ""),
    ):
        if line:
            say(line)
    unknown = np.isin(dataset.held_out.labels, dataset.train.labels, invert=True).sum()
    if labels and unknown:
        say(
            f"warning: {unknown:,} of the {len(dataset.held_out):,} held-out images are of classes "
            "without a training image: top-1, k-NN and probe have them wrong"
        )
    if dataset.warning:
        say(f"warning: {dataset.warning}")
    for name, settings in ((PRETRAIN, config.pretrain), ("finetune", config.finetune)):
        if stage in (name, "all") and settings.warmup_steps > settings.steps:
            say(
                f"warning: {name}.warmup_steps is {settings.warmup_steps}, more than {name}.steps "
                f"= {settings.steps}: the rate never comes to {name}.lr"
            )


def _conclude(out: Path, measures: dict[str, dict[str, float]], seconds: float) -> dict[str, Any]:
    """Write summary.json; return the summary.

    A stage that this call did not run keeps the figures of the call that did.
    """
    path = out / SUMMARY
    summary = _earlier_summary(path)
    if PRETRAIN in measures:
        log = read_log(out / PRETRAIN / "log.jsonl")
        rates = [line["images_per_s"] for line in log if "images_per_s" in line]
        summary["pretext_accuracy"] = measures[PRETRAIN]["pretext_accuracy"]
        summary["images_per_s"] = median(rates) if rates else None  # as on the page
        summary |= _monitored(measures[PRETRAIN], log)
    for name in (FINETUNED, SUPERVISED):
        if name in measures:
            summary[f"{name}_accuracy"] = measures[name]["top1"]
    summary["seconds"] = round(summary.get("seconds", 0.0) + seconds, 1)
    summary["report"] = str(out / PAGE)
    write_atomically(path, json.dumps(summary, indent=1) + "\n")
    return summary


def _earlier_summary(path: Path) -> dict[str, Any]:
    """What stands in `path`; nothing where it is not there or cut short."""
    if not path.exists():
        return {}
    try:
        summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        say(f"warning: {path}: is damaged: figures of stages that did not run now are lost in it")
        return {}
    return summary


def _monitored(last: dict[str, float], log: list[dict[str, Any]]) -> dict[str, float]:
    """k-NN and linear probe at the end, and what k-NN made of P's first weights and of pixels."""
    found = {name: last[name] for name in ("knn", "linear_probe") if name in last}
    first: dict[str, Any] = next((line for line in log if "knn_pixels" in line), {})
    yardsticks = {"knn_random_weights": "knn", "knn_pixels": "knn_pixels"}
    return found | {name: first[key] for name, key in yardsticks.items() if key in first}
