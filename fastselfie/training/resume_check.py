"""Resume a stage: check that its checkpoint fits the config and the images, then restore it."""

from __future__ import annotations

import json
from pathlib import Path

from fastselfie.config import differing_keys
from fastselfie.errors import UserError
from fastselfie.system.console import say
from fastselfie.training.checkpoint import Checkpoint, newest_checkpoint
from fastselfie.training.stage_state import Progress, Stage, restore
from fastselfie.training.step import TrainStep


def check_resumable(stage: Stage, checkpoint: Checkpoint) -> None:
    """Check that a checkpoint of this stage is of the same experiment.

    Raises:
        UserError: its config or images are others; the message says what differs.
    """
    path, state = checkpoint
    way_out = "set them back, or use --resume never or another --out"
    old, new = json.loads(state["config"]), stage.config.model_dump(mode="json")
    if differing := differing_keys(old, new, stage.sections, stage.unused):
        raise UserError(
            f"{path}: was trained with another config: {', '.join(differing)}: {way_out}"
        )
    if state["images"] != stage.images:
        raise UserError(f"{path}: was trained or measured on other images: {way_out}")


def resume_stage(stage: Stage, step: TrainStep, folder: Path) -> Progress:
    """Restore the newest good checkpoint in `folder` if there is one; return the progress.

    Every rank calls it, and rank 0 reads the file. A changed number of ranks or precision is said.

    Raises:
        UserError: see `newest_checkpoint`, `check_resumable` and `restore`.
    """
    ranks = step.accelerator.ranks
    found = ranks.broadcast_from_main(lambda: newest_checkpoint(folder, stage.kind))
    if found is None:
        return Progress()
    with ranks.raise_together():
        check_resumable(stage, found)
        progress = restore(step, found)
    before, world = found.state["processes"], ranks.world
    if before != world:
        say(
            f"{stage.kind}: was trained by {before} processes, resumes with {world}: the order of "
            "samples is the same, but batch norm and dropout see other parts of a batch"
        )
    before, now = found.state["precision"], step.accelerator.precision.name
    if before != now:
        say(
            f"warning: {stage.kind}: was trained in {before}, resumes in {now} "
            f"({step.accelerator.precision.why}): set runtime.precision={before} to keep it"
        )
    return progress
