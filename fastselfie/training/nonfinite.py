"""Steps whose loss or gradient is not finite, found and skipped on the device.

The step computes a flag on the device, and the optimizer's kernel leaves weights and momentum as
they are where the flag says so: nothing waits for the device. After too many such steps in a row
(under `on_nonfinite: raise` after the first) the guard halts: no later step is applied until the
loop reads the flag and stops. So the device still holds the state before that step, however late
the flag is read.
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
from fastselfie.system.accelerator import random_state, set_random_state
from fastselfie.training.checkpoint import save_checkpoint

NONFINITE = "nonfinite"  # the `kind` of the file that `dump_step` writes


class StepSnapshot(NamedTuple):
    """What a step starts from besides the weights.

    Attributes:
        step: its number; 0 is the first.
        samples: of this rank's share of the batch.
        random: state of torch's generators.
    """

    step: int
    samples: Index
    random: dict[str, Tensor]


class NonFiniteStep(NamedTuple):
    """The step at which the guard halted.

    Attributes:
        step: its number; 0 is the first.
        loss: of the step.
        norm: of its gradient.
        before: what it started from; None if the flag was read too late.
    """

    step: int
    loss: float
    norm: float
    before: StepSnapshot | None


class Guard:
    """Decides whether each step of a model is applied, and restores its batch statistics if not.

    Args:
        model: in training.
        stage: how many steps in a row may be skipped.
        device: of the model.
    """

    def __init__(self, model: nn.Module, stage: StageConfig, device: torch.device) -> None:
        self.device = device
        self.limit = 1 if stage.on_nonfinite == "raise" else stage.max_skipped_in_a_row
        self.in_a_row = torch.zeros((), dtype=torch.int64, device=device)
        self._step = torch.full((), -1, dtype=torch.int64, device=device)  # at which it halted
        self._figures = torch.zeros(2, device=device)  # loss and norm of that step
        # Long enough: the loop reads the flag at every line of the log.
        self._recent: deque[StepSnapshot] = deque(maxlen=stage.log_every)
        self._model = model
        self._statistics: list[list[Tensor]] = []
        self._statistics_before: list[Tensor] = []

    def begin(self, step: int, index: Index) -> None:
        """Remember what `step` (0 is the first) starts from."""
        if not self._statistics:
            buffers = list(self._model.buffers())
            kinds = {buffer.dtype for buffer in buffers}
            self._statistics = [[b for b in buffers if b.dtype == kind] for kind in kinds]
        self._recent.append(StepSnapshot(step, index, random_state(self.device)))
        self._statistics_before = self._flat_statistics()

    def judge(self, step: int, loss: Tensor, norm: Tensor) -> Tensor:
        """Decide on the device whether to apply the step.

        Args:
            step: its number.
            loss: () mean over all ranks.
            norm: () of the gradient.

        Returns:
            () bool.
        """
        halted = self._step >= 0
        finite = torch.isfinite(loss) & torch.isfinite(norm)
        self.in_a_row = torch.where(halted, self.in_a_row, (self.in_a_row + 1) * ~finite)
        halts = ~halted & (self.in_a_row >= self.limit)
        self._step = torch.where(halts, step, self._step)
        self._figures = torch.where(halts, torch.stack([loss, norm]).float(), self._figures)
        return finite & ~halted

    def undo_statistics(self, applied: Tensor) -> None:
        """Restore the batch statistics, where a NaN would stay, if the step was not `applied`."""
        flat = self._flat_statistics()
        for group, before, after in zip(
            self._statistics, self._statistics_before, flat, strict=True
        ):
            kept = torch.split(torch.where(applied, after, before), [b.numel() for b in group])
            torch._foreach_copy_(group, [k.view_as(b) for k, b in zip(kept, group, strict=True)])

    def rewind(self) -> None:
        """Restore the batch statistics and torch's generators as the last `begin` found them."""
        self.undo_statistics(torch.zeros((), dtype=torch.bool, device=self.device))
        set_random_state(self._recent[-1].random, self.device)

    def nonfinite_step(self) -> NonFiniteStep | None:
        """Return the step at which the guard halted, or None. Waits for the device."""
        step = int(self._step)
        if step < 0:
            self._recent.clear()
            return None
        loss, norm = self._figures.tolist()
        before = next((before for before in self._recent if before.step == step), None)
        return NonFiniteStep(step, loss, norm, before)

    def _flat_statistics(self) -> list[Tensor]:
        """Copy them into one tensor for each dtype: small copies would cost a launch each."""
        return [torch.cat([b.flatten() for b in group]) for group in self._statistics]


def dump_step(
    state: dict[str, Any],
    nonfinite_step: NonFiniteStep,
    samples: Sequence[Index | None],
    folder: Path,
) -> str:
    """Write the file from which `fastselfie replay` repeats a step.

    Args:
        state: a checkpoint of the weights before the step.
        nonfinite_step: the step.
        samples: of each rank's share of the batch; None where it is not known.
        folder: the stage's.

    Returns:
        How to replay the step, or why that is impossible, for the error message.
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
