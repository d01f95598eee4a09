"""One training step, the same for pretraining and finetuning. No I/O, and no wait for the device.

uint8 batch -> patchify -> model -> loss -> backward -> update, in micro-batches whose gradients
add up. What a log line needs is summed on the device and read only when asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fastselfie.config import StageConfig
from fastselfie.data.loaders import Batch
from fastselfie.device import Machine
from fastselfie.optim import build_optimizer, learning_rate
from fastselfie.phases import phase

# (loss, right answers, answers) of a micro-batch: the loss a mean over it.
Objective = Callable[[Batch], tuple[Tensor, Tensor, int]]


class Means(NamedTuple):
    """Over the steps since the last reading, of all processes."""

    loss: float
    accuracy: float


class TrainStep:
    """Updates a model by `objective`, which runs it forward on a batch.

    replica: the model, or what `Machine.replica` made of it. A batch is this process's part.
    micro_batch: images a forward pass. The loss of a step is the mean over its micro-batches.
    backend: whose SGD, see `build_optimizer`.
    """

    def __init__(
        self,
        replica: nn.Module,
        objective: Objective,
        stage: StageConfig,
        machine: Machine,
        micro_batch: int,
        backend: str = "torch",
    ) -> None:
        # How several processes hold their gradients back until the last pass.
        self._unsent: Callable[[], AbstractContextManager[None]] = nullcontext
        self.model = replica
        if isinstance(replica, DistributedDataParallel):
            self._unsent, self.model = replica.no_sync, replica.module
        self.objective = objective
        self.stage = stage
        self.machine = machine
        self.micro_batch = micro_batch
        self.optimizer = build_optimizer(self.model, stage, backend)
        self.scaler = torch.amp.GradScaler(machine.device.type, enabled=machine.precision.scaled)
        self._clear()

    def __call__(self, step: int, batch: Batch) -> None:
        rate = learning_rate(step, self.stage.steps, self.stage.lr, self.stage.warmup_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        for part in self._passes(batch):
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
        """The means since the last call. Waits for the device: a decision of the caller.

        All processes read together.
        """
        ranks = self.machine.ranks
        loss, correct, answers = ranks.summed(
            float(self._loss), float(self._correct), self._answers
        )
        means = Means(loss / max(1, ranks.world * self._steps), correct / max(1, answers))
        self._clear()
        return means

    def _passes(self, batch: Batch) -> Iterator[Batch]:
        """The micro-batches. Only with the last one do gradients travel, summed up until then."""
        *first, last = batch.split(self.micro_batch)
        with self._unsent():
            yield from first
        yield last

    def _clear(self) -> None:
        self._loss = torch.zeros((), device=self.machine.device)
        self._correct = torch.zeros((), dtype=torch.int64, device=self.machine.device)
        self._steps = self._answers = 0
