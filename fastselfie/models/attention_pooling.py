"""Attention pooling A: `u, _ = Transformer(u0, h_1..h_K)` (paper, section 3.2).

Post-norm transformer blocks as in BERT (Devlin et al., 2018); a learned u0 stands first in the
sequence and its output u summarises the visible patches.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PostNormBlock(nn.Module):
    """Self-attention and an MLP with GELU, each followed by residual and layer norm.

    Dropout on the attention weights and before each residual. Equals `nn.TransformerEncoderLayer`
    but for that layer's dropout inside the MLP, which BERT does not have.

    forward: (B, S, D) -> (B, S, D); with first_only the first place alone, (B, 1, D).
    """

    def __init__(self, width: int, heads: int, feed_forward: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm1 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, feed_forward)
        self.fc2 = nn.Linear(feed_forward, width)
        self.norm2 = nn.LayerNorm(width)
        for linear in (self.qkv, self.out, self.fc1, self.fc2):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, first_only: bool = False) -> Tensor:
        y = self._attend(x, first_only)
        x = self.norm1(x[:, : y.shape[1]] + self._drop(y))
        out: Tensor = self.norm2(x + self._drop(self.fc2(F.gelu(self.fc1(x)))))
        return out

    def _attend(self, x: Tensor, first_only: bool) -> Tensor:
        d = x.shape[2]
        if first_only:
            # One query; its keys and values are of the whole sequence.
            # tensor_split's gradient is one concatenation, slices' are padded and added.
            weights, biases = self.qkv.weight.tensor_split([d]), self.qkv.bias.tensor_split([d])
            q = F.linear(x[:, :1], weights[0], biases[0])
            parts = (q, *F.linear(x, weights[1], biases[1]).chunk(2, dim=2))
        else:
            parts = self.qkv(x).chunk(3, dim=2)
        q, k, v = (part.view(*part.shape[:2], self.heads, -1).transpose(1, 2) for part in parts)
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        out: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return out

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


class AttentionPooling(nn.Module):
    """forward: visible patches (B, K, D), positions already added -> their summary u (B, D)."""

    def __init__(
        self, width: int, layers: int, heads: int, feed_forward: int, dropout: float
    ) -> None:
        super().__init__()
        self.u0 = nn.Parameter(torch.empty(width))
        nn.init.normal_(self.u0, std=0.02)
        self.blocks = nn.ModuleList(
            PostNormBlock(width, heads, feed_forward, dropout) for _ in range(layers)
        )

    def forward(self, visible: Tensor) -> Tensor:
        first = self.u0.to(visible.dtype).expand(len(visible), 1, -1)
        sequence = torch.cat([first, visible], dim=1)
        for block in self.blocks[:-1]:
            sequence = block(sequence)
        # Of the last block only u is used: the other places' queries and MLP would be thrown away.
        u: Tensor = self.blocks[-1](sequence, first_only=True)
        return u[:, 0]
