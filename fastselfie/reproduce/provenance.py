"""Record what a reproduction was started with, so that its folder takes no trials of another."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from fastselfie.config import Config, differing_keys
from fastselfie.data.dataset import Dataset
from fastselfie.data.splits import keep_labels
from fastselfie.errors import UserError
from fastselfie.reproduce.protocol import Protocol
from fastselfie.reproduce.scheduler import RUNS
from fastselfie.runs.folder import read_facts
from fastselfie.stage_names import PRETRAIN
from fastselfie.system.files import write_atomically
from fastselfie.training.checkpoint import newest_checkpoint
from fastselfie.training.pretrain import pretraining_stage
from fastselfie.training.resume_check import check_resumable

PROVENANCE = "reproduce.json"
SECTIONS = ("seed", "data", "model", "pretrain", "finetune", "reproduce")
# Set by each trial.
_UNUSED = tuple(f"finetune.{key}" for key in ("labels", "labels_per_class", "lr", "scratch_lr"))


def check_folders(
    protocol: Protocol,
    dataset: Dataset | None,
    precision: str | None,
    out: Path,
    control: Path | None,
) -> int:
    """Check that `out` and `control` fit the protocol; write nothing.

    Args:
        protocol: The protocol to run.
        dataset: Its images; None: unknown, not compared.
        precision: Its precision; None: unknown, not compared.
        out: Folder of the reproduction, which may not exist yet.
        control: Folder of another reproduction whose config differs only in pretraining, or None.

    Returns:
        Number of pretraining steps that `out` has.

    Raises:
        UserError: A folder has another config, other images or another precision; or `out` is a
            file.
    """
    config = protocol.config
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file: pass another --out")
    if (out / PROVENANCE).exists():
        _check_provenance(config, dataset, precision, out / PROVENANCE, SECTIONS, "another --out")
    if control is not None:
        if not config.finetune.control:
            raise UserError("--control: not with finetune.control=false: remove one of the two")
        path = control / PROVENANCE
        if not path.is_file():
            raise UserError(
                f"--control {control}: has no {PROVENANCE}: pass the folder of a reproduction"
            )
        sections = tuple(section for section in SECTIONS if section != "pretrain")
        _check_provenance(config, dataset, precision, path, sections, "another --control, or none")
    found = newest_checkpoint(out / PRETRAIN, PRETRAIN, quiet=True)
    if found is None:
        return 0
    if dataset is not None:
        check_resumable(pretraining_stage(config, dataset), found)
    # The last step counts only once it was evaluated.
    return int(found.state["step"]) - bool(found.state["owed"])


def write_provenance(protocol: Protocol, dataset: Dataset, precision: str, out: Path) -> None:
    """Write what `check_folders` compares, and the list of labelled images of each share.

    Args:
        protocol: The protocol to run.
        dataset: Its images.
        precision: Name of its precision.
        out: Folder of the reproduction.
    """
    record = {"config": protocol.config.model_dump(mode="json"), "images": dataset.fingerprint()}
    path = out / PROVENANCE
    # An earlier version did not record the precision of its trials.
    recorded = read_facts(path).get("precision") if path.exists() else precision
    if recorded is not None:
        record["precision"] = recorded
    write_atomically(path, json.dumps(record, indent=1) + "\n")
    for labels in protocol.labels:
        chosen = protocol.labelled(dataset, labels)
        kept = out / RUNS / f"labels-{labels:g}" / "labels.txt"
        keep_labels(kept, chosen, dataset.train.labels, protocol.config.seed)


def _check_provenance(
    config: Config,
    dataset: Dataset | None,
    precision: str | None,
    path: Path,
    sections: Sequence[str],
    other: str,
) -> None:
    """Refuse a folder of other images, another precision or other values in `sections`.

    other: the option that the user may change instead, for the message.
    """
    record = read_facts(path)
    if not {"config", "images"} <= set(record):
        raise UserError(f"{path}: is damaged: pass {other}")
    new = config.model_dump(mode="json")
    differing = differing_keys(record["config"], new, sections, _UNUSED)
    if differing:
        raise UserError(
            f"{path}: was started with another config: {', '.join(differing)}: set them back, or "
            f"pass {other}"
        )
    if dataset is not None and record["images"] != dataset.fingerprint():
        raise UserError(f"{path}: was started on other images: restore them, or pass {other}")
    recorded = record.get("precision")
    if None not in (recorded, precision) and recorded != precision:
        raise UserError(
            f"{path}: was started in {recorded}, but this machine uses {precision}: "
            f"set runtime.precision={recorded}, or pass {other}"
        )
