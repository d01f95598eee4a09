"""The runs of a plan, one after the other or by several processes, going on from what is there."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fastselfie.atomic import write_atomically
from fastselfie.checkpoint import newest_checkpoint
from fastselfie.config import Config, differing_keys
from fastselfie.data.sources import Dataset, open_dataset
from fastselfie.data.subsets import keep_labels
from fastselfie.device import Machine, choose_machine
from fastselfie.distributed import ranks_of
from fastselfie.errors import UserError
from fastselfie.log import console, say
from fastselfie.onlyone import only_one_in
from fastselfie.pretrain import pretraining_stage
from fastselfie.report.folder import read_facts
from fastselfie.reproduce import crew
from fastselfie.reproduce.agenda import RUNS, Agenda
from fastselfie.reproduce.bench import Bench
from fastselfie.reproduce.control import take_control
from fastselfie.reproduce.features import FEATURES, FIGURES, measure_features
from fastselfie.reproduce.plan import Plan
from fastselfie.reproduce.statistics import summary_of
from fastselfie.reproduce.table import write_table
from fastselfie.reproduce.teller import Teller
from fastselfie.run import PRETRAIN, train

RECORD = "reproduce.json"
SECTIONS = ("seed", "data", "model", "pretrain", "finetune", "reproduce")
# Each run has its own.
_UNUSED = tuple(f"finetune.{key}" for key in ("labels", "labels_per_class", "lr", "scratch_lr"))


def reproduce(
    plan: Plan, out: Path, jobs: int | None, control: Path | None = None
) -> dict[str, Any]:
    """Pretrain, do every run that has no result yet in `out`, and write the table there.

    jobs: processes that train; None: one a GPU, else one. control: the folder of another
    reproduction, of the same config but for pretraining, whose supervised runs are taken. Returns
    the table's figures.

    Raises:
        UserError: what can be known before the first step is found before it, and leaves `out` as
            it was; of a run, see `finetune`; another process works in `out`.
        Interrupted: a signal came; every run in progress was finished to a step and saved.
    """
    config = plan.config
    if ranks_of(os.environ).world > 1:
        raise UserError(
            "reproduce starts its processes itself, see --jobs: with torchrun run only "
            "`fastselfie train CONFIG --stage pretrain --out DIR`, then reproduce with --out DIR"
        )
    machine = choose_machine(config.runtime)
    jobs = default_jobs(machine) if jobs is None else jobs
    dataset = open_dataset(config.data, config.seed)
    plan.check(dataset)
    _check_out(config, dataset, out)
    if control is not None:
        if not config.finetune.control:
            raise UserError(
                "--control: finetune.control is false, so no supervised run is asked for"
            )
        if not (control / RECORD).is_file():
            raise UserError(f"--control {control}: has no {RECORD}: give a reproduction's folder")
        sections = tuple(section for section in SECTIONS if section != "pretrain")
        _check_record(config, dataset, control / RECORD, sections, "another --control, or none")
    with only_one_in(out):
        _keep_record(plan, dataset, out)
        if control is not None:
            take_control(plan, control, out)
        if not _is_pretrained(config, dataset, out):
            train(config, PRETRAIN, "auto", out)
        bench = Bench(plan, dataset, out, machine)
        features = read_facts(out / FEATURES)
        if not set(features) >= FIGURES:  # none, or an earlier version's
            say("features of P: k-NN and linear probe")
            features = measure_features(config, dataset, machine, bench.pretrained)
            write_atomically(out / FEATURES, json.dumps(features, indent=1) + "\n")
        agenda = Agenda(plan, out)
        tell = Teller(agenda)
        if jobs == 1:
            _do_all(agenda, bench, tell)
        else:
            torch.cuda.empty_cache()  # what pretraining had is a worker's now
            crew.do_all(agenda, plan, out, jobs, tell)
        figures = summary_of(agenda, dataset, features)
        write_table(figures, out)
        return figures


def default_jobs(machine: Machine) -> int:
    """A process for each GPU; on a CPU one."""
    return torch.cuda.device_count() if machine.device.type == "cuda" else 1


def _do_all(agenda: Agenda, bench: Bench, tell: Teller) -> None:
    quiet, console.quiet = console.quiet, not console.is_terminal  # a bar, but no line a step
    try:
        while (run := agenda.next()) is not None:
            agenda.finish(run, bench.do(run))
            tell(run)
    finally:
        console.quiet = quiet


def _is_pretrained(config: Config, dataset: Dataset, out: Path) -> bool:
    """Whether the stage reached its end; one begun otherwise is refused as `train` does."""
    found = newest_checkpoint(out / PRETRAIN, PRETRAIN, quiet=True)
    if found is None:
        return False
    pretraining_stage(config, dataset).check(found.state, found.path)
    done = bool(found.state["step"] >= config.pretrain.steps)
    return done and not found.state["owed"]


def _check_out(config: Config, dataset: Dataset, out: Path) -> None:
    """Whether what is in `out` is of this experiment.

    Raises:
        UserError: another config or set of images; `out` is a file.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file: give another --out")
    if (out / RECORD).exists():
        _check_record(config, dataset, out / RECORD, SECTIONS, "another --out")
    _is_pretrained(config, dataset, out)


def _check_record(
    config: Config, dataset: Dataset, path: Path, sections: Sequence[str], other: str
) -> None:
    """Whether the runs beside the record at `path` have these images and agree in `sections`."""
    record = read_facts(path)
    if not {"config", "images"} <= set(record):
        raise UserError(f"{path}: is damaged: give {other}")
    new = config.model_dump(mode="json")
    differing = differing_keys(record["config"], new, sections, _UNUSED)
    if differing:
        raise UserError(
            f"{path}: was begun with another config: {', '.join(differing)}: set them back, or "
            f"give {other}"
        )
    if record["images"] != dataset.fingerprint():
        raise UserError(f"{path}: was begun on other images: bring them back, or give {other}")


def _keep_record(plan: Plan, dataset: Dataset, out: Path) -> None:
    record = {"config": plan.config.model_dump(mode="json"), "images": dataset.fingerprint()}
    write_atomically(out / RECORD, json.dumps(record, indent=1) + "\n")
    for labels in plan.labels:
        path = out / RUNS / f"labels-{labels:g}" / "labels.txt"
        chosen = plan.labelled(dataset, labels)
        keep_labels(path, chosen, dataset.train.labels, plan.config.seed)
