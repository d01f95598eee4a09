"""An exponential moving average of a network in training, kept on the device without waiting."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class MovingAverage:
    """`model` follows `source`: after each step average = decay x average + (1 - decay) x source.

    It begins as the source is. Batch norm's running mean and variance are averaged as the weights
    are, so that they fit them; whole numbers, its counters, are the source's.

    torch's AveragedModel does the same, but takes part in every step: here a step that was not
    applied moves nothing, and which those are the device alone knows.
    """

    def __init__(self, source: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(source).requires_grad_(False)
        pairs = list(zip(_values(self.model), _values(source), strict=True))
        self._averaged = [pair for pair in pairs if pair[0].is_floating_point()]
        self._copied = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def follow(self, moved: Tensor) -> None:
        """Take up the source's step. moved: () bool, whether there was one."""
        mine, theirs = (list(side) for side in zip(*self._averaged, strict=True))
        steps = torch._foreach_sub(theirs, mine)
        torch._foreach_mul_(steps, (1 - self.decay) * moved)
        torch._foreach_add_(mine, steps)
        for mine_too, count in self._copied:
            mine_too.copy_(count)


def _values(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
