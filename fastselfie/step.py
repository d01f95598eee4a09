"""One training step, the same for pretraining and finetuning. No I/O, and no wait for the device.

uint8 batch -> patchify -> model -> loss -> backward -> update, in micro-batches whose gradients
add up. What a log line needs is summed on the device and read only when asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastselfie.config import StageConfig
from fastselfie.data.loaders import Batch
from fastselfie.device import Machine
from fastselfie.optim import build_optimizer, learning_rate
from fastselfie.phases import phase

# (loss, right answers, answers) of a micro-batch: the loss a mean over it.
Objective = Callable[[Batch], tuple[Tensor, Tensor, int]]


class Means(NamedTuple):
    """Over the steps since the last reading."""

    loss: float
    accuracy: float


class TrainStep:
    """Updates `model` by `objective`, which runs it forward on a batch.

    micro_batch: images a forward pass. The loss of a step is the mean over its micro-batches.
    backend: whose SGD, see `build_optimizer`.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        stage: StageConfig,
        machine: Machine,
        micro_batch: int,
        backend: str = "torch",
    ) -> None:
        machine.check_micro_batch(micro_batch, stage.batch_size)
        self.model = model
        self.objective = objective
        self.stage = stage
        self.machine = machine
        self.micro_batch = micro_batch
        self.optimizer = build_optimizer(model, stage, backend)
        self.scaler = torch.amp.GradScaler(machine.device.type, enabled=machine.precision.scaled)
        self._clear()

    def __call__(self, step: int, batch: Batch) -> None:
        rate = learning_rate(step, self.stage.steps, self.stage.lr, self.stage.warmup_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        for part in batch.split(self.micro_batch):
            share = len(part.images) / len(batch.images)
            with phase("forward"), self.machine.autocast():
                loss, correct, answers = self.objective(part)
            with phase("backward"):
                self.scaler.scale(loss * share).backward()  # type: ignore[no-untyped-call]
            self._loss += loss.detach() * share
            self._correct += correct
            self._answers += answers
        with phase("optimiser"):
            if self.stage.clip_grad_norm is not None:
                self.scaler.unscale_(self.optimizer)
                nn.utils.clip_grad_norm_(self.model.parameters(), self.stage.clip_grad_norm)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad(set_to_none=True)
        self._steps += 1

    def read(self) -> Means:
        """The means since the last call. Waits for the device: a decision of the caller."""
        means = Means(
            float(self._loss) / max(1, self._steps), float(self._correct) / max(1, self._answers)
        )
        self._clear()
        return means

    def _clear(self) -> None:
        self._loss = torch.zeros((), device=self.machine.device)
        self._correct = torch.zeros((), dtype=torch.int64, device=self.machine.device)
        self._steps = self._answers = 0
