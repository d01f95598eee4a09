"""Training of a run: its folder, its stages in order, its summary and its page."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fastselfie.config import Config
from fastselfie.data.dataset import Dataset, class_warning, open_dataset
from fastselfie.data.loaders import choose_loader
from fastselfie.data.splits import keep_labels
from fastselfie.errors import UserError
from fastselfie.models.selfie import Selfie
from fastselfie.runs.doctor import environment
from fastselfie.runs.folder import CLASSES, CONFIG, ENVIRONMENT
from fastselfie.runs.load import load_pretrained, open_run
from fastselfie.runs.summary import write_summary
from fastselfie.stage_names import FINETUNED, PRETRAIN, SUPERVISED, StageName, stages_to_run
from fastselfie.system.accelerator import Accelerator, choose_accelerator
from fastselfie.system.console import messages, say
from fastselfie.system.distributed import Ranks
from fastselfie.system.files import write_atomically
from fastselfie.system.lock import LOCK, exclusive_lock
from fastselfie.system.rendezvous import init_distributed, restarted
from fastselfie.training.checkpoint import (
    LATEST,
    Checkpoint,
    has_checkpoints,
    load_checkpoint,
    newest_checkpoint,
)
from fastselfie.training.finetune import few_labels, finetune, finetuning_stage, labelled
from fastselfie.training.metrics_log import OnLogLine
from fastselfie.training.pretrain import pretrain, pretraining_stage
from fastselfie.training.resume_check import check_resumable
from fastselfie.training.stage_state import Stage
from fastselfie.training.trackers import WANDB_ID, require_wandb

# Takes the config, the folder and whether this is rank 0; opens a page that follows the run.
OpenPage = Callable[[Config, Path, bool], AbstractContextManager[OnLogLine]]


def no_page(config: Config, out: Path, is_main: bool) -> AbstractContextManager[OnLogLine]:
    """Write no page while a run trains."""
    return nullcontext(lambda: None)


def train(
    config: Config, stage: str, resume: str, out: Path, open_page: OpenPage = no_page
) -> dict[str, Any] | None:
    """Train the stages of a run. Every rank calls it.

    All errors that can be known before the first step are raised before it and leave `out` as it
    was.

    Args:
        config: the run's.
        stage: pretrain, finetuned or all, see `stages_to_run`.
        resume: auto: from the checkpoints in `out`; never: move an earlier run aside first; a path:
            from a copy of that run or checkpoint.
        out: the run's folder.
        open_page: `LivePage`, to follow the run in a browser.

    Returns:
        The summary, as in summary.json; None on ranks other than 0.

    Raises:
        ValueError: `stage` is something else.
        UserError: see `pretrain` and `finetune`; or finetuning without a pretrained network.
    """
    began = time.time()
    stages = stages_to_run(stage)
    ranks = init_distributed(config.runtime)
    if restarted():
        resume = "auto"  # the first start has moved or copied the earlier run
    with messages(shown=ranks.is_main), ExitStack() as stack:
        with ranks.raise_together():
            accelerator, dataset = _open(config, stages, resume, out, ranks, stack)
        images = ranks.broadcast_from_main(dataset.fingerprint)
        with ranks.raise_together():
            if dataset.fingerprint() != images:
                raise UserError(
                    f"{config.data.train}: other images on another machine: data.train and "
                    "data.test must be the same on all"
                )
        on_log_line = stack.enter_context(open_page(config, out, ranks.is_main))
        measures: dict[StageName, dict[str, float]] = {}
        if PRETRAIN in stages:
            network, measures[PRETRAIN] = pretrain(
                config, dataset, out / PRETRAIN, accelerator, on_log_line
            )
        else:
            read = partial(load_pretrained, config, out / PRETRAIN, whole=True)
            network = ranks.broadcast_from_main(read)
        if FINETUNED in stages:
            arms: list[tuple[StageName, Selfie | None]] = [(FINETUNED, network)]
            if config.finetune.control:
                arms.append((SUPERVISED, None))
            few = few_labels(config, dataset)
            for name, start in arms:
                measures[name] = finetune(config, few, out / name, accelerator, start, on_log_line)
        return write_summary(out, measures, time.time() - began) if ranks.is_main else None


def _open(
    config: Config,
    stages: Sequence[StageName],
    resume: str,
    out: Path,
    ranks: Ranks,
    stack: ExitStack,
) -> tuple[Accelerator, Dataset]:
    """Check all that can be known before the first step, then prepare `out`.

    Args:
        stack: holds the lock on `out` until it is closed.
    """
    accelerator = choose_accelerator(config.runtime, ranks)
    _check_processes(config, stages, accelerator)
    dataset = open_dataset(config.data, config.seed, labels_needed=FINETUNED in stages)
    chosen = labelled(config, dataset) if FINETUNED in stages else None
    if ranks.is_main:
        require_wandb(config.log)
        _announce(config, stages, accelerator, dataset, 0 if chosen is None else len(chosen))
        images = dataset.fingerprint()
        stages_of_run = {
            PRETRAIN: pretraining_stage(config, dataset),
            FINETUNED: finetuning_stage(config, images, from_p=True),
            SUPERVISED: finetuning_stage(config, images, from_p=False),
        }
        _prepare_folder(out, resume, stages_of_run)
        stack.enter_context(exclusive_lock(out))
        if chosen is not None:
            if not any(has_checkpoints(out / name) for name in StageName):
                (out / "labels.txt").unlink(missing_ok=True)  # left by a start that trained nothing
            keep_labels(out / "labels.txt", chosen, dataset.train.labels, config.seed)
        write_atomically(out / CLASSES, json.dumps(list(dataset.train.classes)) + "\n")
        write_atomically(out / CONFIG, config.to_yaml())
        facts = environment(accelerator.device) | {"processes": str(accelerator.ranks.world)}
        write_atomically(out / ENVIRONMENT, json.dumps(facts, indent=1) + "\n")
    return accelerator, dataset


def _check_processes(config: Config, stages: Sequence[StageName], accelerator: Accelerator) -> None:
    """Check that this number of ranks can train with `config`.

    Raises:
        UserError: a key does not fit; the message names it.
    """
    ranks = accelerator.ranks
    if config.model.sync_batch_norm and ranks.world > 1 and accelerator.device.type != "cuda":
        raise UserError(
            "model.sync_batch_norm is true, which torch has for GPUs only: set it to false, or "
            "start one process"
        )
    for stage in stages:
        name, settings = stage.section, config.stage_settings(stage)
        part, rest = divmod(settings.batch_size, ranks.world)
        if rest:
            raise UserError(
                f"{name}.batch_size is {settings.batch_size}: not a multiple of the {ranks.world} "
                "ranks: set another size, or start another number of processes"
            )
        micro = min(settings.micro_batch_size or part, part)
        if part % micro:
            raise UserError(
                f"{name}.micro_batch_size is {micro}: it must divide {part}, each process's share "
                f"of {name}.batch_size = {settings.batch_size}"
            )


def _prepare_folder(out: Path, resume: str, stages: dict[StageName, Stage]) -> None:
    """Prepare `out` for training, or raise UserError and leave it as it was."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file: pass another --out")
    source = out if resume in ("auto", "never") else Path(resume)
    if resume != "never":
        for name, stage in stages.items():
            found = newest_checkpoint(source / name, name, quiet=True)  # the stage warns
            if found is not None:
                check_resumable(stage, found)
    if resume == "never" and out.exists():
        whole = out.resolve()
        aside = whole.with_name(f"{whole.name}.{time.strftime('%Y%m%d-%H%M%S')}")
        with exclusive_lock(out):
            os.rename(whole, aside)
        say(f"moved the earlier run to {aside}")
    elif source != out:
        _copy_run(source, out, stages)


def _copy_run(source: Path, out: Path, stages: dict[StageName, Stage]) -> None:
    """Copy another run, or one checkpoint, into `out`."""
    if not source.exists():
        raise UserError(f"{source}: no such run or checkpoint to resume from")
    if out.exists() and source.resolve() == out.resolve():
        return
    if any(has_checkpoints(out / name) for name in stages):
        raise UserError(f"{out}: has checkpoints of its own: use --resume auto or another --out")
    if source.is_dir():
        open_run(source)  # refuses a folder that is not a run
        # The copy is a new run, on W&B too.
        ignored = shutil.ignore_patterns(LOCK, WANDB_ID, "wandb")
        shutil.copytree(source, out, dirs_exist_ok=True, ignore=ignored)
        return
    state = load_checkpoint(source)
    if state["kind"] not in stages:
        raise UserError(f"{source}: a checkpoint of an unknown stage, {state['kind']!r}")
    check_resumable(stages[state["kind"]], Checkpoint(source, state))
    target = out / state["kind"] / LATEST
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target)


def _announce(
    config: Config,
    stages: Sequence[StageName],
    accelerator: Accelerator,
    dataset: Dataset,
    labels: int,
) -> None:
    data = config.pretraining_data if PRETRAIN in stages else config.data
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
            "without a training image: top-1, k-NN and probe count them as wrong"
        )
    if dataset.warning:
        say(f"warning: {dataset.warning}")
    for stage in stages:
        name, settings = stage.section, config.stage_settings(stage)
        if settings.warmup_steps > settings.steps:
            say(
                f"warning: {name}.warmup_steps is {settings.warmup_steps}, more than {name}.steps "
                f"= {settings.steps}: the learning rate never reaches {name}.lr"
            )
