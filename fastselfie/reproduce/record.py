"""What a reproduction was begun with, kept beside its runs: others are not mixed with them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from fastselfie.atomic import write_atomically
from fastselfie.checkpoint import newest_checkpoint
from fastselfie.config import Config, differing_keys
from fastselfie.data.sources import Dataset
from fastselfie.data.subsets import keep_labels
from fastselfie.device import Machine
from fastselfie.errors import UserError
from fastselfie.pretrain import pretraining_stage
from fastselfie.report.folder import read_facts
from fastselfie.reproduce.agenda import RUNS
from fastselfie.reproduce.plan import Plan
from fastselfie.run import PRETRAIN

RECORD = "reproduce.json"
SECTIONS = ("seed", "data", "model", "pretrain", "finetune", "reproduce")
# Each run has its own.
_UNUSED = tuple(f"finetune.{key}" for key in ("labels", "labels_per_class", "lr", "scratch_lr"))


def check_folders(
    plan: Plan, dataset: Dataset, machine: Machine, out: Path, control: Path | None
) -> bool:
    """Whether the pretraining in `out` is done; writes nothing.

    control: another reproduction, of the same config but for pretraining.

    Raises:
        UserError: what is in `out` or `control` is of another config or set of images, or in
            another precision; `out` is a file.
    """
    config = plan.config
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file: give another --out")
    if (out / RECORD).exists():
        _check_record(config, dataset, machine, out / RECORD, SECTIONS, "another --out")
    pretrained = _is_pretrained(config, dataset, out)
    if control is None:
        return pretrained
    if not config.finetune.control:
        raise UserError("--control: finetune.control is false, so no supervised run is asked for")
    path, other = control / RECORD, "another --control, or none"
    if not path.is_file():
        raise UserError(f"--control {control}: has no {RECORD}: give a reproduction's folder")
    sections = tuple(section for section in SECTIONS if section != "pretrain")
    _check_record(config, dataset, machine, path, sections, other)
    return pretrained


def keep_record(plan: Plan, dataset: Dataset, machine: Machine, out: Path) -> None:
    """Write what `check_folders` compares, and which images have labels at each share."""
    record = {
        "config": plan.config.model_dump(mode="json"),
        "images": dataset.fingerprint(),
        "precision": machine.precision.name,
    }
    write_atomically(out / RECORD, json.dumps(record, indent=1) + "\n")
    for labels in plan.labels:
        path = out / RUNS / f"labels-{labels:g}" / "labels.txt"
        chosen = plan.labelled(dataset, labels)
        keep_labels(path, chosen, dataset.train.labels, plan.config.seed)


def _is_pretrained(config: Config, dataset: Dataset, out: Path) -> bool:
    """Whether the stage reached its end; one begun otherwise is refused as `train` does."""
    found = newest_checkpoint(out / PRETRAIN, PRETRAIN, quiet=True)
    if found is None:
        return False
    pretraining_stage(config, dataset).check(found.state, found.path)
    done = bool(found.state["step"] >= config.pretrain.steps)
    return done and not found.state["owed"]


def _check_record(
    config: Config,
    dataset: Dataset,
    machine: Machine,
    path: Path,
    sections: Sequence[str],
    other: str,
) -> None:
    """Whether the runs beside the record at `path` have these images and this precision, and agree
    in `sections`."""
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
    precision = record.get("precision", machine.precision.name)  # an earlier version's has none
    if precision != machine.precision.name:
        raise UserError(
            f"{path}: was begun in {precision}, and this machine's is {machine.precision.name}: "
            f"set runtime.precision={precision}, or give {other}"
        )
