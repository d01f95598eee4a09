"""Selfie: P on every patch, A over the visible ones, a score for each masked place (paper, 3)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastselfie.config import Config
from fastselfie.kernels.distractor_score import distractor_score, summed
from fastselfie.kernels.reference import distractor_scores
from fastselfie.models.pooling import AttentionPooling
from fastselfie.models.resnet import How, ResNetV2
from fastselfie.phases import phase


class Positions(nn.Module):
    """A vector for each of N = grid x grid locations, (N, D).

    learned: one parameter vector a location. row_column: a row's plus a column's. std: of each
    entry at the start, in both.
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
        """The table, or rows and columns, as `distractor_score` takes them."""
        return self.table if hasattr(self, "table") else (self.rows, self.columns)

    def forward(self) -> Tensor:
        return summed(self.vectors())


class Encoded(NamedTuple):
    """What the decoder compares: u (B, D), masked patches h (B, M, D), positions (N, D)."""

    u: Tensor
    h: Tensor
    positions: Tensor


class Selfie(nn.Module):
    """The pretraining network.

    forward: patches (B, N, 3, P, P), visible first and masked last, and their locations `order`
    (B, N) int64 -> loss () and the number of right answers () int64 out of B x M.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        model = config.model
        width = model.embedding_width
        self.masked = config.masked
        self.encoder_positions = model.encoder_positions
        self.kernels = config.runtime.kernels
        self.scale = width**-0.5 if model.logit_scale == "inverse_sqrt" else 1.0
        self.patch_network = build_patch_network(config)
        self.pooling = AttentionPooling(
            width, model.layers, model.heads, model.feed_forward, model.dropout
        )
        self.positions = Positions(model.positions, config.grid, width, model.position_std)

    def encode(self, patches: Tensor, order: Tensor) -> Encoded:
        """Every patch through P once; the visible ones, with their positions, through A."""
        b, n = order.shape
        visible = n - self.masked
        with phase("P"):
            h_bnd = self.patch_network(patches.flatten(0, 1)).view(b, n, -1)
        with phase("A"):
            positions = self.positions()
            seen = h_bnd[:, :visible]
            if self.encoder_positions:
                seen = seen + positions[order[:, :visible]].to(seen.dtype)
            u = self.pooling(seen)
        # The candidates carry no position: it would give the answer away.
        return Encoded(u, h_bnd[:, visible:], positions)

    def forward(self, patches: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
        u, h, _ = self.encode(patches, order)
        locations = order[:, -self.masked :]
        positions = self.positions.vectors()
        with phase("scoring"):
            return distractor_score(u, h, positions, locations, self.scale, self.kernels)

    def scores(self, patches: Tensor, order: Tensor) -> Tensor:
        """(B, M, M): masked locations by candidates, for evaluation and pictures."""
        u, h, positions = self.encode(patches, order)
        return distractor_scores(u, h, positions, order[:, -self.masked :], self.scale)


def build_patch_network(config: Config) -> ResNetV2:
    """P: the first three stages, normed and pooled (paper: 'the first three blocks')."""
    model = config.model
    return ResNetV2(model.blocks[:3], model.width, model.stem, how=_how(config))


def build_classifier(config: Config, classes: int) -> ResNetV2:
    """The network that is finetuned: all four stages and a classifier."""
    model = config.model
    return ResNetV2(model.blocks, model.width, model.stem, classes, _how(config))


def _how(config: Config) -> How:
    return How(config.runtime.activation_checkpointing, config.runtime.kernels)
