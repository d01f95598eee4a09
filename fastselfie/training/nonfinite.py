"""What becomes of a step whose loss or gradient is not finite, decided on the device.

How the weights stay unharmed without waiting for the device: the step computes a flag there, and
the optimiser's kernel leaves weights and momentum alone where the flag says so. Once too many steps
in a row were bad (for on_nonfinite: raise that is the first) the guard has halted: no later step is
applied either, until the loop reads the flag and stops. So what stands on the device then is the
state before the offence, however late it is read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fastselfie.config import StageConfig
from fastselfie.data.loaders import Index
from fastselfie.system.accelerator import random_state
from fastselfie.training.checkpoint import save_checkpoint

NONFINITE = "nonfinite"  # the kind of the file that an offence leaves


class StepSnapshot(NamedTuple):
    """What a step began from, beside the weights: its number, its samples, the random state."""

    step: int
    samples: Index
    random: dict[str, Tensor]


class NonFiniteStep(NamedTuple):
    """The step at which the guard halted. before: None where it was not kept."""

    step: int
    loss: float
    norm: float
    before: StepSnapshot | None

    def samples(self) -> Index | None:
        """Those of the step, of this process."""
        return None if self.before is None else self.before.samples


class Guard:
    """Judges every step of `model`, and puts its batch statistics back after a bad one."""

    def __init__(self, model: nn.Module, stage: StageConfig, device: torch.device) -> None:
        self.device = device
        self.limit = 1 if stage.on_nonfinite == "raise" else stage.max_skipped_in_a_row
        self.in_a_row = torch.zeros((), dtype=torch.int64, device=device)
        self._step = torch.full((), -1, dtype=torch.int64, device=device)  # of the offence
        self._figures = torch.zeros(2, device=device)  # its loss and norm
        # The loop reads at least this often.
        self._recent: deque[StepSnapshot] = deque(maxlen=stage.log_every)
        self._model = model
        self._statistics: list[list[Tensor]] = []
        self._statistics_before: list[Tensor] = []

    def begin(self, step: int, index: Index) -> None:
        """Remember what `step` (0 is the first) begins from."""
        if not self._statistics:
            buffers = list(self._model.buffers())
            kinds = {buffer.dtype for buffer in buffers}
            self._statistics = [[b for b in buffers if b.dtype == kind] for kind in kinds]
        self._recent.append(StepSnapshot(step, index, random_state(self.device)))
        self._statistics_before = self._flat_statistics()

    def judge(self, step: int, loss: Tensor, norm: Tensor) -> Tensor:
        """() bool: whether to apply the step. norm: of the gradient."""
        halted = self._step >= 0
        finite = torch.isfinite(loss) & torch.isfinite(norm)
        self.in_a_row = torch.where(halted, self.in_a_row, (self.in_a_row + 1) * ~finite)
        halts = ~halted & (self.in_a_row >= self.limit)
        self._step = torch.where(halts, step, self._step)
        self._figures = torch.where(halts, torch.stack([loss, norm]).float(), self._figures)
        return finite & ~halted

    def undo_statistics(self, applied: Tensor) -> None:
        """Put the batch statistics back where the step was not `applied`: a NaN stays in them."""
        flat = self._flat_statistics()
        for group, before, after in zip(
            self._statistics, self._statistics_before, flat, strict=True
        ):
            kept = torch.split(torch.where(applied, after, before), [b.numel() for b in group])
            torch._foreach_copy_(group, [k.view_as(b) for k, b in zip(kept, group, strict=True)])

    def nonfinite_step(self) -> NonFiniteStep | None:
        """Where the guard halted, if it has. Waits for the device: a decision of the caller."""
        step = int(self._step)
        if step < 0:
            self._recent.clear()
            return None
        loss, norm = self._figures.tolist()
        before = next((before for before in self._recent if before.step == step), None)
        return NonFiniteStep(step, loss, norm, before)

    def _flat_statistics(self) -> list[Tensor]:
        """A copy, a tensor for each dtype: a hundred small copies would cost a launch each."""
        return [torch.cat([b.flatten() for b in group]) for group in self._statistics]


def dump_step(
    state: dict[str, Any],
    nonfinite_step: NonFiniteStep,
    samples: Sequence[Index | None],
    folder: Path,
) -> str:
    """Write what the offence began from; say how to look at it.

    state: a checkpoint. samples: of all processes, unknown only if nobody read for too long.
    """
    path = folder / f"nonfinite-{nonfinite_step.step + 1:07d}.pt"
    kept = {**state, "kind": NONFINITE, "stage": state["kind"], "step": nonfinite_step.step}
    known = [index for index in samples if index is not None]
    if nonfinite_step.before is not None:
        ids, epochs = (torch.from_numpy(np.concatenate(v)) for v in zip(*known, strict=True))
        kept.update(random=nonfinite_step.before.random, samples=ids, epochs=epochs)
    try:
        save_checkpoint(path, kept)
    except OSError as error:
        return f"{path} could not be written ({error.strerror})"
    return f"`fastselfie replay {path}` runs that step again"
