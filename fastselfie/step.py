"""One training step, the same for pretraining and finetuning. No I/O, and no wait for the device.

uint8 batch -> patchify -> model -> loss -> backward -> update, in micro-batches whose gradients
add up. What a log line needs is summed on the device and read only when asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastselfie.config import StageConfig
from fastselfie.data.loaders import Batch
from fastselfie.device import Machine
from fastselfie.guard import Guard
from fastselfie.optim import begin_momentum, build_optimizer, learning_rate
from fastselfie.phases import phase

# (loss, right answers, answers) of a micro-batch: the loss a mean over it.
Objective = Callable[[Batch], tuple[Tensor, Tensor, int]]


class Means(NamedTuple):
    """Over the `steps` since the last reading. loss, accuracy: 0 where no step was applied.

    skipped: steps left out because they were not finite.
    """

    loss: float
    accuracy: float
    steps: int
    skipped: int


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
        self.model = model
        self.objective = objective
        self.stage = stage
        self.machine = machine
        self.micro_batch = micro_batch
        self.optimizer = build_optimizer(model, stage, backend)
        self.scaler = torch.amp.GradScaler(machine.device.type, enabled=machine.precision.scaled)
        self.guard = Guard(model, stage, machine.device)
        self._clear()

    def __call__(self, step: int, batch: Batch) -> None:
        rate = learning_rate(step, self.stage.steps, self.stage.lr, self.stage.warmup_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        begin_momentum(self.optimizer)
        self.guard.begin(step, batch.index)
        loss, correct, answers = self._gradients(batch)
        with phase("optimiser"):
            if self.scaler.is_enabled():
                applied = self._update_scaled(step, loss)
            else:
                applied = self._update(step, loss)
            self.optimizer.zero_grad(set_to_none=True)
            self.guard.undo_statistics(applied)
        totals = self._totals
        totals["loss"] += torch.where(applied, loss, 0.0)
        totals["correct"] += applied * correct
        totals["answers"] += applied * answers
        totals["steps"] += applied
        totals["skipped"] += ~applied

    def read(self) -> Means:
        """The means since the last call. Waits for the device: a decision of the caller."""
        loss, correct, answers, steps, skipped = (
            float(self._totals[name]) for name in ("loss", "correct", "answers", "steps", "skipped")
        )
        self._clear()
        return Means(loss / max(1, steps), correct / max(1, answers), int(steps), int(skipped))

    def unread(self) -> dict[str, Tensor]:
        """What the next reading begins from; a resumed run goes on with it."""
        return {**self._totals, "in_a_row": self.guard.in_a_row}

    def go_on_from(self, unread: Mapping[str, Tensor]) -> None:
        """Take up what `unread` gave."""
        values = {name: value.to(self.machine.device) for name, value in unread.items()}
        self.guard.in_a_row = values.pop("in_a_row")
        self._totals = values

    def _gradients(self, batch: Batch) -> tuple[Tensor, Tensor, int]:
        """Those of the batch's mean loss, left in the parameters; loss, right answers, answers."""
        losses, rights, total = [], [], 0
        for part in batch.split(self.micro_batch):
            share = len(part.images) / len(batch.images)
            with phase("forward"), self.machine.autocast():
                loss, correct, answers = self.objective(part)
            with phase("backward"):
                self.scaler.scale(loss * share).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach() * share)
            rights.append(correct)
            total += answers
        return torch.stack(losses).sum(), torch.stack(rights).sum(), total

    def _update(self, step: int, loss: Tensor) -> Tensor:
        """Apply the gradients if the guard lets them; () bool."""
        norm = nn.utils.get_total_norm(self._all_gradients())
        if self.stage.clip_grad_norm is not None:
            parameters = self.model.parameters()
            nn.utils.clip_grads_with_norm_(parameters, self.stage.clip_grad_norm, norm)
        applied = self.guard.judge(step, loss, norm)
        if getattr(self.optimizer, "_step_supports_amp_scaling", False):
            # The fused kernel's own switch: where it is 1, weights and momentum stay as they are.
            self.optimizer.found_inf = (~applied).float()  # type: ignore[attr-defined]
            self.optimizer.step()
        elif applied:  # apex has no such switch: this waits for the device
            self.optimizer.step()
        return applied

    def _update_scaled(self, step: int, loss: Tensor) -> Tensor:
        """The same for fp16, whose scaler looks for infinite gradients itself.

        Those are no offence: they tell it to lower the scale. It takes the guard's word as one.
        """
        applied = self.guard.judge(step, loss, torch.zeros_like(loss))
        self._all_gradients()[0].add_(torch.where(applied, 0.0, math.inf))
        if self.stage.clip_grad_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.stage.clip_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return applied

    def _all_gradients(self) -> list[Tensor]:
        return [p.grad for p in self.model.parameters() if p.grad is not None]

    def _clear(self) -> None:
        device, counts = self.machine.device, ("correct", "answers", "steps", "skipped")
        self._totals = {c: torch.zeros((), dtype=torch.int64, device=device) for c in counts}
        self._totals["loss"] = torch.zeros((), device=device)
