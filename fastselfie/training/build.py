"""Build what a stage trains: the network, the transform that makes its input, and the step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from fastselfie.config import Config, StageConfig
from fastselfie.data.inputs import InputTransform
from fastselfie.data.loaders import Batch
from fastselfie.system.accelerator import Accelerator
from fastselfie.system.console import say_once
from fastselfie.system.resources import total_memory
from fastselfie.training.memory import MemoryEstimate
from fastselfie.training.step import TrainStep

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class BuiltStage(Generic[Model]):
    """A fresh network, the transform of batches to its input, and the step that trains it."""

    model: Model
    pixels: InputTransform
    step: TrainStep


def build_stage(
    config: Config,
    settings: StageConfig,
    accelerator: Accelerator,
    estimate: MemoryEstimate,
    build_model: Callable[[], Model],
    objective: Callable[[Callable[..., Any], InputTransform, Batch], tuple[Tensor, Tensor, int]],
) -> BuiltStage[Model]:
    """Build a stage on the accelerator's device, its network initialised from `config.seed`.

    Args:
        config: the run's.
        settings: the stage's: not always a section of `config`, see `finetuning_stage`.
        accelerator: where and how it trains.
        estimate: the network's memory, from which the micro-batch follows.
        build_model: makes the network; called once, after torch's generator is seeded.
        objective: runs the network as it trains (replicated, compiled) on a micro-batch, and
            returns what `Objective` does.
    """
    accelerator = accelerator.for_stage(settings)
    if accelerator.why_eager:
        say_once(f"runtime.compile is auto, and steps are not compiled: {accelerator.why_eager}")
    if accelerator.device.type == "cuda":
        # Convolutions see few shapes, so each is timed once and then faster. Which algorithm wins
        # may differ between two starts, and so does rounding: docs/reliability.md promises the same
        # bits on a CPU only, because on a GPU atomic additions break them in any case.
        torch.backends.cudnn.benchmark = True
    torch.manual_seed(config.seed)
    model = build_model()
    accelerator.place(model)
    memory = total_memory(accelerator.device)
    if shortage := estimate.shortage(memory):
        say_once(f"warning: {shortage}")
    micro_batch = estimate.micro_batch(settings, memory, accelerator.ranks.world)
    pixels = InputTransform(config, accelerator, micro_batch)
    replica = accelerator.replica(model, config.model.sync_batch_norm)
    bound = partial(objective, accelerator.compiled(replica), pixels)
    backend = config.optimizer.backend
    step = TrainStep(replica, bound, settings, accelerator, micro_batch, backend)
    return BuiltStage(model, pixels, step)
