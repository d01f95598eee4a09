"""What a reproduction was begun with, kept beside its runs: others are not mixed with them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from fastselfie.config import Config, differing_keys
from fastselfie.data.dataset import Dataset
from fastselfie.data.splits import keep_labels
from fastselfie.errors import UserError
from fastselfie.reproduce.protocol import Plan
from fastselfie.reproduce.scheduler import RUNS
from fastselfie.runs.folder import read_facts
from fastselfie.stage_names import PRETRAIN
from fastselfie.system.files import write_atomically
from fastselfie.training.checkpoint import newest_checkpoint
from fastselfie.training.pretrain import pretraining_stage

RECORD = "reproduce.json"
SECTIONS = ("seed", "data", "model", "pretrain", "finetune", "reproduce")
# Each run has its own.
_UNUSED = tuple(f"finetune.{key}" for key in ("labels", "labels_per_class", "lr", "scratch_lr"))


def check_folders(
    plan: Plan, dataset: Dataset | None, precision: str | None, out: Path, control: Path | None
) -> int:
    """Return the steps of pretraining that `out` has; writes nothing.

    dataset, precision: None where they are not known, and not compared. control: another
    reproduction, of the same config but for pretraining.

    Raises:
        UserError: what is in `out` or `control` is of another config or set of images, or in
            another precision; `out` is a file.
    """
    config = plan.config
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file: give another --out")
    if (out / RECORD).exists():
        _check_record(config, dataset, precision, out / RECORD, SECTIONS, "another --out")
    if control is not None:
        if not config.finetune.control:
            raise UserError(
                "--control: finetune.control is false, so no supervised run is asked for"
            )
        path = control / RECORD
        if not path.is_file():
            raise UserError(f"--control {control}: has no {RECORD}: give a reproduction's folder")
        sections = tuple(section for section in SECTIONS if section != "pretrain")
        _check_record(config, dataset, precision, path, sections, "another --control, or none")
    return _pretrained_steps(config, dataset, out)


def keep_record(plan: Plan, dataset: Dataset, precision: str, out: Path) -> None:
    """Write what `check_folders` compares, and which images have labels at each share."""
    record = {"config": plan.config.model_dump(mode="json"), "images": dataset.fingerprint()}
    path = out / RECORD
    # An earlier version's record does not say in which precision its runs are.
    begun = read_facts(path).get("precision") if path.exists() else precision
    if begun is not None:
        record["precision"] = begun
    write_atomically(path, json.dumps(record, indent=1) + "\n")
    for labels in plan.labels:
        chosen = plan.labelled(dataset, labels)
        kept = out / RUNS / f"labels-{labels:g}" / "labels.txt"
        keep_labels(kept, chosen, dataset.train.labels, plan.config.seed)


def _pretrained_steps(config: Config, dataset: Dataset | None, out: Path) -> int:
    """The last one counts once its measures are there. One begun otherwise is refused as `train`
    does."""
    found = newest_checkpoint(out / PRETRAIN, PRETRAIN, quiet=True)
    if found is None:
        return 0
    if dataset is not None:
        pretraining_stage(config, dataset).check(found.state, found.path)
    return int(found.state["step"]) - bool(found.state["owed"])


def _check_record(
    config: Config,
    dataset: Dataset | None,
    precision: str | None,
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
    if dataset is not None and record["images"] != dataset.fingerprint():
        raise UserError(f"{path}: was begun on other images: bring them back, or give {other}")
    begun = record.get("precision")
    if None not in (begun, precision) and begun != precision:
        raise UserError(
            f"{path}: was begun in {begun}, and this machine's is {precision}: "
            f"set runtime.precision={begun}, or give {other}"
        )
