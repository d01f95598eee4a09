"""A run: its folder, its stages in order, its summary and its page."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from fastselfie.checkpoint import load_checkpoint, load_weights
from fastselfie.config import Config
from fastselfie.configfile import load_config
from fastselfie.data.loaders import choose_loader
from fastselfie.data.sources import Dataset, open_dataset
from fastselfie.device import Machine, choose_machine
from fastselfie.doctor import environment
from fastselfie.errors import UserError
from fastselfie.finetune import finetune
from fastselfie.log import console, read_log
from fastselfie.loop import LATEST
from fastselfie.models.resnet import ResNetV2
from fastselfie.models.selfie import build_patch_network
from fastselfie.pretrain import pretrain
from fastselfie.report.page import write_page

CONFIG, SUMMARY, PAGE = "config.yaml", "summary.json", "report.html"
PRETRAIN, FINETUNED, SUPERVISED = "pretrain", "finetuned", "supervised"
STAGES = (PRETRAIN, "finetune", "all")


def train(config: Config, stage: str, resume: str, out: Path) -> dict[str, Any]:
    """Run the stages into `out`, going on from what is there; return the summary.

    stage: pretrain, finetune or all. resume: auto goes on from the checkpoints in `out`; never
    moves an earlier run aside first; a path starts from a copy of that run or checkpoint.

    Raises:
        UserError: see the stages; or `finetune` where nothing was pretrained.
    """
    began = time.time()
    machine = choose_machine(config.runtime)
    dataset = open_dataset(config.data, config.seed)
    _announce(config, machine, dataset)
    _prepare_folder(out, resume)
    (out / CONFIG).write_text(config.to_yaml(), encoding="utf-8")

    measures: dict[str, dict[str, float]] = {}
    if stage in (PRETRAIN, "all"):
        network, measures[PRETRAIN] = pretrain(config, dataset, out / PRETRAIN, machine)
    else:
        network = load_patch_network(config, out / PRETRAIN / LATEST)
    if stage in ("finetune", "all"):
        arms: list[tuple[str, ResNetV2 | None]] = [(FINETUNED, network)]
        if config.finetune.control:
            arms.append((SUPERVISED, None))
        for name, start in arms:
            measures[name] = finetune(
                config,
                dataset,
                out / name,
                out / "labels.txt",
                machine,
                start,
            )
    return _conclude(config, machine, out, measures, time.time() - began)


def load_patch_network(config: Config, path: Path) -> ResNetV2:
    """P from a pretraining checkpoint.

    Raises:
        UserError: no checkpoint, one of another stage, or of another model.
    """
    if not path.is_file():
        raise UserError(f"{path}: nothing is pretrained there: run --stage pretrain or all first")
    state = load_checkpoint(path)
    if state["kind"] != PRETRAIN:
        raise UserError(f"{path}: a checkpoint of stage {state['kind']}, not of {PRETRAIN}")
    prefix = "patch_network."
    weights = {k.removeprefix(prefix): v for k, v in state["model"].items() if k.startswith(prefix)}
    network = build_patch_network(config)
    load_weights(network, weights, path)
    return network


def open_run(run: Path) -> Config:
    """The configuration of a run's folder.

    Raises:
        UserError: not a folder of a run.
    """
    if not (run / CONFIG).is_file():
        raise UserError(f"{run}: not a run: it has no {CONFIG}")
    return load_config(run / CONFIG)


def _prepare_folder(out: Path, resume: str) -> None:
    if resume == "never" and out.exists():
        aside = out.with_name(f"{out.name}.{time.strftime('%Y%m%d-%H%M%S')}")
        os.rename(out, aside)
        console.print(f"moved the earlier run to {aside}")
    elif resume not in ("auto", "never"):
        _copy_run(Path(resume), out)
    out.mkdir(parents=True, exist_ok=True)


def _copy_run(source: Path, out: Path) -> None:
    """Take the checkpoints and logs of another run, or one pretraining checkpoint, into `out`."""
    if not source.exists():
        raise UserError(f"{source}: no such run or checkpoint to resume from")
    if out.exists() and source.resolve() == out.resolve():
        return
    if any((out / name / LATEST).exists() for name in (PRETRAIN, FINETUNED, SUPERVISED)):
        raise UserError(f"{out}: has checkpoints of its own: use --resume auto or another --out")
    if source.is_dir():
        open_run(source)  # refuses a folder that is not a run
        shutil.copytree(source, out, dirs_exist_ok=True)
    else:
        kind = load_checkpoint(source)["kind"]
        (out / kind).mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, out / kind / LATEST)


def _announce(config: Config, machine: Machine, dataset: Dataset) -> None:
    loader, why = choose_loader(config.data, dataset.train, machine.device)
    console.print(
        f"[bold]{config.name}[/]  device {machine.device} ({machine.why}), precision "
        f"{machine.precision.name} ({machine.precision.why}), loader {loader} ({why})"
    )
    console.print(
        f"{len(dataset.train):,} training images, {len(dataset.held_out):,} held out "
        f"({dataset.split}), {len(dataset.train.classes)} classes",
        soft_wrap=True,
    )


def _conclude(
    config: Config,
    machine: Machine,
    out: Path,
    measures: dict[str, dict[str, float]],
    seconds: float,
) -> dict[str, Any]:
    """Write summary.json and report.html; return the summary.

    A stage that this call did not run keeps the figures of the call that did.
    """
    path = out / SUMMARY
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    rates = [
        line["images_per_s"]
        for line in read_log(out / PRETRAIN / "log.jsonl")
        if "images_per_s" in line
    ]
    summary = dict(before)
    if PRETRAIN in measures:
        summary["pretext_accuracy"] = measures[PRETRAIN]["pretext_accuracy"]
        summary["images_per_s"] = sorted(rates)[len(rates) // 2] if rates else None
    for name in (FINETUNED, SUPERVISED):
        if name in measures:
            summary[f"{name}_accuracy"] = measures[name]["top1"]
    summary["seconds"] = round(before.get("seconds", 0.0) + seconds, 1)
    summary["report"] = str(out / PAGE)
    path.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    write_page(config, out, summary, environment(machine.device))
    return summary
