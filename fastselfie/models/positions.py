"""The position vectors of the patches."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastselfie.kernels.distractor_score import summed


class Positions(nn.Module):
    """A vector for each of N = grid x grid locations.

    Args:
        kind: learned: a parameter vector for each location; row_column: the sum of a vector of its
            row and one of its column.
        grid: patches along a side.
        width: D.
        std: initial standard deviation of each entry, for both kinds.
    """

    def __init__(self, kind: str, grid: int, width: int, std: float) -> None:
        super().__init__()
        self.grid = grid
        if kind == "learned":
            self.table = nn.Parameter(torch.empty(grid * grid, width))
        else:
            self.rows = nn.Parameter(torch.empty(grid, width))
            self.columns = nn.Parameter(torch.empty(grid, width))
            std = std / 2**0.5  # two vectors are summed
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=std)

    def vectors(self) -> Tensor | tuple[Tensor, Tensor]:
        """The table (N, D), or rows and columns (grid, D), as `distractor_score` takes them."""
        return self.table if hasattr(self, "table") else (self.rows, self.columns)

    def forward(self) -> Tensor:
        """-> (N, D)."""
        return summed(self.vectors())
