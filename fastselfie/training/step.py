"""One training step, the same for pretraining and finetuning. No I/O, and no wait for the device.

uint8 batch -> patchify -> model -> loss -> backward -> update, in micro-batches whose gradients
add up. What a log line needs is summed on the device and read only when asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fastselfie.config import StageConfig
from fastselfie.data.loaders import Batch
from fastselfie.system.accelerator import Accelerator
from fastselfie.system.trace_ranges import trace_range
from fastselfie.training.ema import MovingAverage
from fastselfie.training.nonfinite import Guard
from fastselfie.training.optimizer import begin_momentum, build_optimizer, learning_rate

# fp16's smallest normal number, 30 halvings below the first scale: under it a loss of 1 loses bits,
# and a gradient that is still infinite is above 65,504 x 2^14, or NaN at every scale.
_LEAST_SCALE = 2.0**-14

# (loss, right answers, answers) of a micro-batch: the loss a mean over it.
Objective = Callable[[Batch], tuple[Tensor, Tensor, int]]


class Means(NamedTuple):
    """Over the `steps` since the last reading, of all processes.

    loss, accuracy: 0 where no step was applied. skipped: steps left out because they were not
    finite. norm, largest_norm: of the gradient before it is clipped; NaN where they are not known.
    """

    loss: float
    accuracy: float
    steps: int
    skipped: int
    norm: float
    largest_norm: float


class Update(NamedTuple):
    """What came of a step's gradients, all on the device.

    applied: () bool, whether the guard let them. moved: () bool, whether the weights did: fp16's
    scaler leaves them where it lowers its scale. norm: () of the gradients, NaN where not known.
    """

    applied: Tensor
    moved: Tensor
    norm: Tensor


class TrainStep:
    """Updates a model by `objective`, which runs it forward on a batch.

    replica: the model, or what `Accelerator.replica` made of it. A batch is this process's part.
    micro_batch: images a forward pass. The loss of a step is the mean over its micro-batches.
    backend: whose SGD, see `build_optimizer`. decay: of the moving average; None: there is none.
    """

    def __init__(
        self,
        replica: nn.Module,
        objective: Objective,
        stage: StageConfig,
        accelerator: Accelerator,
        micro_batch: int,
        backend: str = "torch",
        decay: float | None = None,
    ) -> None:
        accelerator.check_micro_batch(micro_batch, stage.batch_size // accelerator.ranks.world)
        # How several processes hold their gradients back until the last pass.
        self._unsent: Callable[[], AbstractContextManager[None]] = nullcontext
        self.model = replica
        if isinstance(replica, DistributedDataParallel):
            self._unsent, self.model = replica.no_sync, replica.module
        self.objective = objective
        self.stage = stage
        self.accelerator = accelerator
        self.micro_batch = micro_batch
        self.optimizer = build_optimizer(self.model, stage, backend)
        self.scaler = torch.amp.GradScaler(
            accelerator.device.type, enabled=accelerator.precision.scaled
        )
        self.guard = Guard(self.model, stage, accelerator.device)
        self.average = None if decay is None else MovingAverage(self.model, decay)
        self._clear()

    def __call__(self, step: int, batch: Batch) -> None:
        rate = learning_rate(step, self.stage.steps, self.stage.lr, self.stage.warmup_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        begin_momentum(self.optimizer)
        self.guard.begin(step, batch.index)
        loss, correct, answers = self._gradients(batch.shrunk(self.stage.image_size_at(step)))
        with trace_range("optimiser"):
            # Of all processes: they must judge alike.
            seen = self.accelerator.ranks.mean_on_device(loss)
            if self.scaler.is_enabled():
                applied, moved, norm = self._update_scaled(step, seen)
            else:
                applied, moved, norm = self._update(step, seen)
            self.optimizer.zero_grad(set_to_none=True)
            self.guard.undo_statistics(applied)
            if self.average is not None:
                self.average.follow(moved)
        totals = self._totals
        totals["loss"] += torch.where(applied, loss, 0.0)
        totals["correct"] += applied * correct
        totals["answers"] += applied * answers
        totals["steps"] += applied
        totals["skipped"] += ~applied
        norm = torch.where(applied, norm, 0.0).float()
        totals["norm"] += norm
        totals["largest_norm"] = torch.maximum(totals["largest_norm"], norm)

    def read(self) -> Means:
        """The means since the last call. Waits for the device: a decision of the caller.

        All processes read together.
        """
        ranks, totals = self.accelerator.ranks, {k: float(v) for k, v in self._totals.items()}
        loss, correct, answers = ranks.summed(*(totals[k] for k in ("loss", "correct", "answers")))
        steps, skipped = int(totals["steps"]), int(totals["skipped"])  # the same on all
        self._clear()
        return Means(
            loss / max(1, ranks.world * steps),
            correct / max(1, answers),
            steps,
            skipped,
            totals["norm"] / max(1, steps),
            totals["largest_norm"],
        )

    def metric_accumulators(self) -> dict[str, Tensor]:
        """What the next reading begins from; a resumed run goes on with it."""
        return {**self._totals, "in_a_row": self.guard.in_a_row}

    def go_on_from(self, metric_accumulators: Sequence[Mapping[str, Tensor]]) -> None:
        """Continue the sums of every process, also of another number of processes."""
        ranks = self.accelerator.ranks
        own = dict(metric_accumulators[min(ranks.rank, len(metric_accumulators) - 1)])
        if len(metric_accumulators) != ranks.world:
            own["loss"] = torch.stack([each["loss"] for each in metric_accumulators]).mean()
            for name in ("correct", "answers"):
                total = torch.stack([each[name] for each in metric_accumulators]).sum()
                own[name] = total if ranks.is_main else torch.zeros_like(total)
        own = {name: value.to(self.accelerator.device) for name, value in own.items()}
        self.guard.in_a_row = own.pop("in_a_row")
        for name in ("norm", "largest_norm"):  # older checkpoints do not have those of their steps
            own.setdefault(name, torch.where(own["steps"] > 0, math.nan, 0.0))
        self._totals = own

    def _gradients(self, batch: Batch) -> tuple[Tensor, Tensor, int]:
        """Those of the batch's mean loss, left in the parameters; loss, right answers, answers."""
        losses, rights, total = [], [], 0
        for part in self._passes(batch):
            share = len(part.images) / len(batch.images)
            with trace_range("forward"), self.accelerator.autocast():
                loss, correct, answers = self.objective(part)
            with trace_range("backward"):
                self.scaler.scale(loss * share).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach() * share)
            rights.append(correct)
            total += answers
        return torch.stack(losses).sum(), torch.stack(rights).sum(), total

    def _update(self, step: int, loss: Tensor) -> Update:
        """Apply the gradients if the guard lets them."""
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
        return Update(applied, applied, norm)

    def _update_scaled(self, step: int, loss: Tensor) -> Update:
        """The same for fp16, whose scaler looks for infinite gradients itself.

        Those are no offence until the scale is spent: they tell it to lower it. It takes the
        guard's word as one. The norm is NaN, unknown: the gradients are scaled, and unscaled in the
        optimiser's kernel.
        """
        before = self.scaler.scale(torch.ones_like(loss))
        norm = torch.where(before < _LEAST_SCALE, math.inf, torch.zeros_like(loss))
        applied = self.guard.judge(step, loss, norm)
        self._all_gradients()[0].add_(torch.where(applied, 0.0, math.inf))
        if self.stage.clip_grad_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.stage.clip_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        moved = self.scaler.scale(torch.ones_like(loss)) >= before
        return Update(applied, moved, torch.full_like(loss, math.nan))

    def _all_gradients(self) -> list[Tensor]:
        return [p.grad for p in self.model.parameters() if p.grad is not None]

    def _passes(self, batch: Batch) -> Iterator[Batch]:
        """The micro-batches. Only with the last one do gradients travel, summed up until then."""
        *first, last = batch.split(self.micro_batch)
        with self._unsent():
            yield from first
        yield last

    def _clear(self) -> None:
        device, counts = self.accelerator.device, ("correct", "answers", "steps", "skipped")
        self._totals = {c: torch.zeros((), dtype=torch.int64, device=device) for c in counts}
        for name in ("loss", "norm", "largest_norm"):
            self._totals[name] = torch.zeros((), device=device)
