"""An exponential moving average of a network's weights, kept on the device without waiting."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class MovingAverage:
    """The average of `source` over steps: average = decay x average + (1 - decay) x source.

    It starts as a copy of the source. Batch norm's running mean and variance are averaged like the
    weights, so that they fit them; integer buffers, its counters, are copied.

    torch's AveragedModel does the same but counts every step. Here a step that was not applied does
    not count, and only the device knows which those are.

    Args:
        source: the network in training.
        decay: weight of the average in each step, in (0, 1).

    Attributes:
        model: the network with the averaged weights.
    """

    def __init__(self, source: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(source).requires_grad_(False)
        pairs = list(zip(_values(self.model), _values(source), strict=True))
        self._averaged = [pair for pair in pairs if pair[0].is_floating_point()]
        copied = [pair for pair in pairs if not pair[0].is_floating_point()]
        self._counts = [list(side) for side in zip(*copied, strict=True)]

    @torch.no_grad()
    def follow(self, moved: Tensor) -> None:
        """Update the average after a step.

        Args:
            moved: () bool, whether the source's weights changed.
        """
        mine, theirs = (list(side) for side in zip(*self._averaged, strict=True))
        steps = torch._foreach_sub(theirs, mine)
        torch._foreach_mul_(steps, (1 - self.decay) * moved)
        torch._foreach_add_(mine, steps)
        if self._counts:
            mine, theirs = self._counts
            torch._foreach_copy_(mine, theirs)


def _values(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
