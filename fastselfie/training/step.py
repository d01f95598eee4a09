"""One training step, the same for every stage. It never waits for the device.

uint8 batch -> patchify -> model -> loss -> backward -> update, in micro-batches whose gradients are
summed. Metrics are summed on the device and read only when the log needs them.
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
from fastselfie.errors import UserError
from fastselfie.system.accelerator import Accelerator
from fastselfie.system.console import say
from fastselfie.system.trace_ranges import trace_range
from fastselfie.training.memory import smaller_micro_batch
from fastselfie.training.nonfinite import Guard
from fastselfie.training.optimizer import begin_momentum, build_optimizer, learning_rate

# fp16's smallest normal number, 30 halvings below the initial scale. At a lower scale a loss of 1
# loses bits, and a gradient that is still infinite exceeds 65,504 x 2^14 or is NaN at any scale.
_LEAST_SCALE = 2.0**-14

# Takes a micro-batch; returns its mean loss (), its right answers () and the number of answers.
Objective = Callable[[Batch], tuple[Tensor, Tensor, int]]


class Means(NamedTuple):
    """Metrics of the steps since the last `TrainStep.read`, over all ranks.

    Attributes:
        loss: mean; 0 if no step was applied.
        accuracy: share of right answers; 0 if no step was applied.
        steps: steps that were applied.
        skipped: steps that were not applied because the loss or gradient was not finite.
        norm: mean norm of the gradient before clipping; NaN if unknown, as in fp16.
        largest_norm: the largest such norm; NaN if unknown.
    """

    loss: float
    accuracy: float
    steps: int
    skipped: int
    norm: float
    largest_norm: float


class TrainStep:
    """Updates a model: `step(number, batch)`, where number 0 is the first step.

    Args:
        replica: the model, or the replica that `Accelerator.replica` made of it.
        objective: runs the model forward. The loss of a step is the mean over its micro-batches.
        stage: the stage's settings.
        accelerator: device, precision and ranks. A batch is this rank's share.
        micro_batch: images in a forward pass.
        backend: whose SGD, see `build_optimizer`.

    Raises:
        UserError: `micro_batch` cannot be used with CUDA graphs, or see `build_optimizer`.
    """

    def __init__(
        self,
        replica: nn.Module,
        objective: Objective,
        stage: StageConfig,
        accelerator: Accelerator,
        micro_batch: int,
        backend: str = "torch",
    ) -> None:
        accelerator.check_micro_batch(micro_batch, stage.batch_size // accelerator.ranks.world)
        # Entered in all micro-batches but the last: DDP then does not exchange gradients.
        self._no_sync: Callable[[], AbstractContextManager[None]] = nullcontext
        self.model = replica
        if isinstance(replica, DistributedDataParallel):
            self._no_sync, self.model = replica.no_sync, replica.module
        self.objective = objective
        self.stage = stage
        self.accelerator = accelerator
        self.micro_batch = micro_batch
        self.optimizer = build_optimizer(self.model, stage, backend)
        self.scaler = torch.amp.GradScaler(
            accelerator.device.type, enabled=accelerator.precision.scaled
        )
        self.guard = Guard(self.model, stage, accelerator.device)
        self._clear()

    def __call__(self, step: int, batch: Batch) -> None:
        rate = learning_rate(step, self.stage.steps, self.stage.lr, self.stage.warmup_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        begin_momentum(self.optimizer)
        self.guard.begin(step, batch.index)
        batch = batch.shrunk(self.stage.image_size_at(step))
        loss, correct, answers = self._gradients_in_memory(step, batch)
        with trace_range("optimiser"):
            # The mean over all ranks, so that all reach the same verdict.
            seen = self.accelerator.ranks.mean_on_device(loss)
            update = self._update_scaled if self.scaler.is_enabled() else self._update
            applied, norm = update(step, seen)
            self.optimizer.zero_grad(set_to_none=True)
            self.guard.undo_statistics(applied)
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
        """Return the means since the last call and reset them. Waits for the device.

        Every rank calls it.
        """
        ranks, totals = self.accelerator.ranks, {k: float(v) for k, v in self._totals.items()}
        loss, correct, answers = ranks.summed(*(totals[k] for k in ("loss", "correct", "answers")))
        steps, skipped = int(totals["steps"]), int(totals["skipped"])  # equal on all ranks
        self._clear()
        loss, accuracy = loss / max(1, ranks.world * steps), correct / max(1, answers)
        norm, largest_norm = totals["norm"] / max(1, steps), totals["largest_norm"]
        return Means(loss, accuracy, steps, skipped, norm, largest_norm)

    def metric_accumulators(self) -> dict[str, Tensor]:
        """Sums since the last `read`, by name, as a checkpoint saves them for a resumed run."""
        return {**self._totals, "in_a_row": self.guard.in_a_row}

    def load_metric_accumulators(self, metric_accumulators: Sequence[Mapping[str, Tensor]]) -> None:
        """Restore the sums of a checkpoint.

        Args:
            metric_accumulators: of every rank; their number may differ from today's.
        """
        ranks = self.accelerator.ranks
        own = dict(metric_accumulators[min(ranks.rank, len(metric_accumulators) - 1)])
        if len(metric_accumulators) != ranks.world:
            own["loss"] = torch.stack([each["loss"] for each in metric_accumulators]).mean()
            for name in ("correct", "answers"):
                total = torch.stack([each[name] for each in metric_accumulators]).sum()
                own[name] = total if ranks.is_main else torch.zeros_like(total)
        own = {name: value.to(self.accelerator.device) for name, value in own.items()}
        self.guard.in_a_row = own.pop("in_a_row")
        for name in ("norm", "largest_norm"):  # older checkpoints lack them
            own.setdefault(name, torch.where(own["steps"] > 0, math.nan, 0.0))
        self._totals = own

    def _gradients_in_memory(self, step: int, batch: Batch) -> tuple[Tensor, Tensor, int]:
        """Do as `_gradients`, in smaller micro-batches if the first step of a run is too large.

        Only in the first step, and only if the config leaves the size open: batch norm averages
        over a micro-batch, so another size makes another run. Several ranks would have to agree
        while some of them wait for the gradients of the others: they do not try.

        Raises:
            UserError: memory runs out nevertheless.
        """
        smaller = None
        if step == 0 and self.stage.micro_batch_size is None and self.accelerator.ranks.world == 1:
            smaller = smaller_micro_batch(self.micro_batch, len(batch.images))
        while True:
            try:
                return self._gradients(batch)
            except torch.OutOfMemoryError:
                if smaller is None:
                    raise UserError(
                        f"out of memory at step {step + 1}, in passes of {self.micro_batch} "
                        "images: lower micro_batch_size, or set "
                        "runtime.activation_checkpointing=true"
                    ) from None
            # Here, after the exception, nothing keeps the tensors of the failed pass.
            self.accelerator.check_micro_batch(smaller, len(batch.images))
            say(
                f"out of memory in the first step: passes of {self.micro_batch} images become "
                f"passes of {smaller}, over which batch norm averages, for the whole run"
            )
            self.micro_batch, smaller = smaller, None
            self.optimizer.zero_grad(set_to_none=True)
            self.guard.rewind()
            torch.compiler.reset()  # else the other size would be compiled for sizes that change
            torch.cuda.empty_cache()

    def _gradients(self, batch: Batch) -> tuple[Tensor, Tensor, int]:
        """Add up the gradients of the batch's mean loss; return loss, right answers, answers."""
        losses, rights, total = [], [], 0
        for part in self._micro_batches(batch):
            share = len(part.images) / len(batch.images)
            with trace_range("forward"), self.accelerator.autocast():
                loss, correct, answers = self.objective(part)
            with trace_range("backward"):
                self.scaler.scale(loss * share).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach() * share)
            rights.append(correct)
            total += answers
        return torch.stack(losses).sum(), torch.stack(rights).sum(), total

    def _update(self, step: int, loss: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the gradients if the guard accepts the step.

        Returns:
            On the device, () each: whether the guard accepted the step, and the norm of the
            gradients, NaN if unknown.
        """
        norm = nn.utils.get_total_norm(self._all_gradients())
        if self.stage.clip_grad_norm is not None:
            parameters = self.model.parameters()
            nn.utils.clip_grads_with_norm_(parameters, self.stage.clip_grad_norm, norm)
        applied = self.guard.judge(step, loss, norm)
        if getattr(self.optimizer, "_step_supports_amp_scaling", False):
            # The fused kernel reads this flag: where it is 1, weights and momentum do not change.
            self.optimizer.found_inf = (~applied).float()  # type: ignore[attr-defined]
            self.optimizer.step()
        elif applied:  # apex has no such switch: this waits for the device
            self.optimizer.step()
        return applied, norm

    def _update_scaled(self, step: int, loss: Tensor) -> tuple[Tensor, Tensor]:
        """Do as `_update` in fp16, where the scaler looks for infinite gradients itself.

        It answers them by lowering its scale and skipping the update, so they are only an error at
        the lowest scale. A step that the guard rejects is passed on to the scaler as an infinite
        gradient. The norm is NaN, unknown: the gradients are scaled, and only the optimizer's
        kernel unscales them.
        """
        scale = self.scaler.scale(torch.ones_like(loss))
        norm = torch.where(scale < _LEAST_SCALE, math.inf, torch.zeros_like(loss))
        applied = self.guard.judge(step, loss, norm)
        self._all_gradients()[0].add_(torch.where(applied, 0.0, math.inf))
        if self.stage.clip_grad_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.stage.clip_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return applied, torch.full_like(loss, math.nan)

    def _all_gradients(self) -> list[Tensor]:
        return [p.grad for p in self.model.parameters() if p.grad is not None]

    def _micro_batches(self, batch: Batch) -> Iterator[Batch]:
        """Yield the micro-batches. Ranks exchange their gradients only after the last one."""
        *first, last = batch.split(self.micro_batch)
        with self._no_sync():
            yield from first
        yield last

    def _clear(self) -> None:
        device, counts = self.accelerator.device, ("correct", "answers", "steps", "skipped")
        self._totals = {c: torch.zeros((), dtype=torch.int64, device=device) for c in counts}
        for name in ("loss", "norm", "largest_norm"):
            self._totals[name] = torch.zeros((), device=device)
