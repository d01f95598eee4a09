"""`train --dry-run`: print what a run would do."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fastselfie.config import Config, StageConfig
from fastselfie.data.dataset import class_warning, open_dataset
from fastselfie.data.loaders import choose_loader
from fastselfie.data.loaders.backends import INSTALL
from fastselfie.errors import UserError
from fastselfie.models.selfie import build_selfie
from fastselfie.runs.doctor import ON_REQUEST, examine
from fastselfie.stage_names import FINETUNED, stages_to_run
from fastselfie.system.accelerator import Accelerator, choose_accelerator
from fastselfie.system.resources import total_memory
from fastselfie.training.finetune import labelled
from fastselfie.training.memory import MemoryEstimate, estimate_finetuning, estimate_pretraining
from fastselfie.training.trackers import require_wandb

_HOW_TO_MAKE = (
    "Make an image folder with one sub-folder a class (DIR/train/CLASS/*.jpg and DIR/test/..., or "
    "DIR/CLASS/*.jpg), then run again with data.train=DIR. For ImageNet, unpack "
    "ILSVRC2012_img_train.tar so that each class is a folder. To try without any data: "
    "data.loader=synthetic."
)


def print_plan(config: Config, out: Path, console: Console, stage: str = "all") -> None:
    """Print the resolved config, sizes, memory, and what is missing. Changes nothing.

    Args:
        config: the run's.
        out: its folder.
        console: where to print.
        stage: see `train`; pretraining alone needs no labels.
    """
    finetunes = FINETUNED in stages_to_run(stage)
    accelerator = choose_accelerator(config.runtime)
    table = Table(title=f"{config.name}: what a run would do", show_header=False)
    table.add_row("device", f"{accelerator.device} ({accelerator.why})")
    table.add_row("precision", f"{accelerator.precision.name} ({accelerator.precision.why})")
    missing, classes = [], 1000
    try:
        dataset = open_dataset(config.data, config.seed, labels_needed=finetunes)
    except UserError as error:
        if config.data.train is not None:
            raise
        missing.append(f"data: {error}. {_HOW_TO_MAKE}")
    else:
        classes = len(dataset.train.classes)
        loader, why = choose_loader(config.pretraining_data, dataset.train, accelerator.device)
        table.add_row("loader", f"{loader} ({why})")
        table.add_row("training images", f"{len(dataset.train):,} of {classes:,} classes")
        table.add_row("held out", f"{len(dataset.held_out):,} ({escape(dataset.split)})")
        if dataset.warning:
            table.add_row("warning", escape(dataset.warning))
        if warning := class_warning(dataset.train, config.data.train or ""):
            table.add_row("classes", escape(warning))
        if finetunes:
            try:
                table.add_row("with labels", f"{len(labelled(config, dataset)):,}")
            except UserError as error:
                missing.append(f"labels: {error}")
    chance = f"chance {1 / config.masked:.1%}"
    table.add_row("task", f"{config.masked} of {config.patches} patches masked, {chance}")
    pretraining = estimate_pretraining(config, accelerator.precision)
    for name, count in _parameters(config).items():
        table.add_row(f"parameters of {name}", f"{count / 1e6:.2f} M")
    missing += _add_stage(table, "pretraining", config.pretrain, pretraining, accelerator)
    finetuning = estimate_finetuning(config, classes, accelerator.precision)
    missing += _add_stage(table, "finetuning", config.finetune, finetuning, accelerator)
    if config.finetune.control:
        table.add_row("control", "the same network, steps and labels from scratch")
    table.add_row("output", escape(str(out)))
    console.print(config.to_yaml(), markup=False)
    console.print(table)
    try:
        require_wandb(config.log)
    except UserError as error:
        missing.append(str(error))
    missing += _missing(out, 3 * pretraining.fixed, config.data.loader)
    for line in missing:
        console.print(f"[bold]missing[/] {escape(line)}", soft_wrap=True)
    if not missing:
        console.print("nothing is missing")


def _parameters(config: Config) -> dict[str, int]:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        model = build_selfie(config)
        parts = {"P": model.patch_network, "A": model.pooling, "positions": model.positions}
        return {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}


def _add_stage(
    table: Table, name: str, stage: StageConfig, estimate: MemoryEstimate, accelerator: Accelerator
) -> list[str]:
    """Add a stage's rows; return what is missing for it."""
    memory = total_memory(accelerator.device)
    micro = estimate.micro_batch(stage, memory)
    passes = "" if micro == stage.batch_size else f" in passes of {micro}"
    table.add_row(
        name,
        f"{stage.steps:,} steps x {stage.batch_size:,} images{passes} = "
        f"{stage.steps * stage.batch_size:,} images, {estimate.parameters / 1e6:.2f} M parameters",
    )
    accelerator = accelerator.for_stage(stage)
    if accelerator.compile or accelerator.why_eager:
        why = f"off: {accelerator.why_eager}" if accelerator.why_eager else accelerator.compile
        table.add_row(f"{name}, compile", why)
    need = estimate.total(micro)
    table.add_row(
        f"{name}, memory",
        f"about {need / 2**30:.1f} GiB of {memory / 2**30:.1f} "
        f"({estimate.per_image / 2**20:.1f} MiB an image)",
    )
    shortage = estimate.shortage(memory)
    return [f"memory: {name}: {shortage}"] if shortage else []


def _missing(out: Path, needed: int, loader: str) -> list[str]:
    """List what the machine lacks: findings of `examine`, and disk space for checkpoints."""
    unused = (*INSTALL, *ON_REQUEST)
    lines = [
        f"{finding.name}: {finding.text}: {finding.fix}"
        for finding in examine()
        # A loader that this run does not use is not reported.
        if finding.state != "ok" and (finding.name not in unused or finding.name == loader)
    ]
    folder = next(p for p in (out, *out.absolute().parents) if p.is_dir())
    free = shutil.disk_usage(folder).free
    if free < needed:
        lines.append(
            f"disk: {folder} has {free / 2**20:,.0f} MiB free, checkpoints need about "
            f"{needed / 2**20:,.0f}: use --out elsewhere"
        )
    if not os.access(folder, os.W_OK):
        lines.append(f"permission: {folder} is not writable: use --out elsewhere")
    return lines
