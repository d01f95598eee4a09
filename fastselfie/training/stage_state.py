"""The state of one stage: what identifies it, its progress, and both as a checkpoint holds them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fastselfie.config import Config, StageConfig
from fastselfie.stage_names import StageName
from fastselfie.system.accelerator import random_state, set_random_state
from fastselfie.training.checkpoint import Checkpoint, load_weights
from fastselfie.training.optimizer import load_optimizer
from fastselfie.training.step import TrainStep


@dataclass(frozen=True)
class Stage:
    """What identifies a stage of a run: its checkpoints must agree with it.

    Attributes:
        kind: the stage's name.
        config: the run's.
        settings: the stage's; for the control they may differ from the config's section.
        sections: sections of the config whose keys must not change when a run is resumed.
        images: fingerprint of the dataset.
        unused: keys in `sections` that the stage does not read, which may change.
    """

    kind: StageName
    config: Config
    settings: StageConfig
    sections: Sequence[str]
    images: str
    unused: Sequence[str] = ()


@dataclass
class Progress:
    """The progress of a stage.

    Attributes:
        done: whole steps.
        metrics: of the last evaluation.
        evaluation_pending: whether the evaluation after step `done` is due and not finished.
        skipped: images that `data.on_error: skip` replaced in those steps, on all ranks.
    """

    done: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    evaluation_pending: bool = False
    skipped: int = 0


def checkpoint_state(
    stage: Stage,
    step: TrainStep,
    progress: Progress,
    metric_accumulators: Sequence[Mapping[str, Tensor]],
) -> dict[str, Any]:
    """Collect the state that a checkpoint holds.

    Args:
        stage: which stage it is of.
        step: has the network, the optimizer and the scaler.
        progress: how far the stage is.
        metric_accumulators: `TrainStep.metric_accumulators` of every rank.
    """
    return {
        "kind": stage.kind.value,  # a plain string: weights_only loads no enum
        "images": stage.images,
        "step": progress.done,
        "micro_batch": step.micro_batch,
        "processes": step.accelerator.ranks.world,
        "precision": step.accelerator.precision.name,
        "config": json.dumps(stage.config.model_dump(mode="json")),
        "model": step.model.state_dict(),
        "optimizer": step.optimizer.state_dict(),
        "scaler": step.scaler.state_dict(),
        "random": random_state(step.accelerator.device),
        "unread": metric_accumulators,
        "metrics": progress.metrics,
        "owed": progress.evaluation_pending,
        "skipped": progress.skipped,
    }


def restore(step: TrainStep, found: Checkpoint) -> Progress:
    """Load a checkpoint into `step`: weights, optimizer, scaler, torch's random state.

    Raises:
        UserError: the weights are of another model, or the checkpoint's micro-batches cannot be
            used with CUDA graphs on this machine.
    """
    state, ranks = found.state, step.accelerator.ranks
    step.accelerator.check_micro_batch(state["micro_batch"], step.stage.batch_size // ranks.world)
    load_weights(step.model, state["model"], found.path)
    load_optimizer(step.optimizer, state["optimizer"])
    if state["scaler"] and step.scaler.is_enabled():  # empty unless it was saved in fp16
        step.scaler.load_state_dict(state["scaler"])
    step.micro_batch = state["micro_batch"]
    step.load_metric_accumulators(state["unread"])
    set_random_state(state["random"], step.accelerator.device)
    skipped = state.get("skipped", 0)  # older checkpoints lack it
    return Progress(state["step"], state["metrics"], state["owed"], skipped)
