"""Attention pooling A: `u, _ = Transformer(u0, h_1..h_K)` (paper, section 3.2).

Post-norm transformer blocks as in BERT (Devlin et al., 2018). A learned u0 is the first token of
the sequence; its output u summarises the visible patches. S is the length of the sequence.

With `model.query: pooled` (ours) there are M such tokens, one for each masked location: u0 + its
position. The parameters are the same.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PostNormBlock(nn.Module):
    """Self-attention and an MLP with GELU, each followed by a residual and a layer norm.

    Dropout acts on the attention weights and before each residual. The block equals
    `nn.TransformerEncoderLayer` without that layer's dropout inside the MLP, which BERT lacks.

    Args:
        width: D.
        heads: of the attention; they divide `width`.
        feed_forward: inner width of the MLP.
        dropout: probability.
    """

    def __init__(self, width: int, heads: int, feed_forward: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.drop = nn.Dropout(dropout)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm1 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, feed_forward)
        self.fc2 = nn.Linear(feed_forward, width)
        self.norm2 = nn.LayerNorm(width)
        for linear in (self.qkv, self.out, self.fc1, self.fc2):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, first: int | None = None, allowed: Tensor | None = None) -> Tensor:
        """Transform a sequence, or only its first tokens.

        Args:
            x: (B, S, D).
            first: S', the tokens to compute. They attend to the whole sequence. None: all.
            allowed: (S', S) bool, whether a token attends to another; None: all do.

        Returns:
            (B, S', D).
        """
        y = self._attend(x, first, allowed)
        x = self.norm1(x[:, : y.shape[1]] + self.drop(y))
        out: Tensor = self.norm2(x + self.drop(self.fc2(F.gelu(self.fc1(x)))))
        return out

    def _attend(self, x: Tensor, first: int | None, allowed: Tensor | None) -> Tensor:
        d = x.shape[2]
        if first is None:
            parts = self.qkv(x).chunk(3, dim=2)
        else:
            # Few queries against the keys and values of the whole sequence. The gradient of
            # tensor_split is one concatenation; those of slices would be padded and added.
            weights, biases = self.qkv.weight.tensor_split([d]), self.qkv.bias.tensor_split([d])
            q = F.linear(x[:, :first], weights[0], biases[0])
            parts = (q, *F.linear(x, weights[1], biases[1]).chunk(2, dim=2))
        q, k, v = (part.view(*part.shape[:2], self.heads, -1).transpose(1, 2) for part in parts)
        dropout = self.drop.p if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, allowed, dropout)
        out: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return out


class AttentionPooling(nn.Module):
    """A: a transformer whose output at each query summarises the visible patches.

    Args:
        width: D.
        layers: number of blocks.
        heads: see `PostNormBlock`; the same for `feed_forward` and `dropout`.
    """

    def __init__(
        self, width: int, layers: int, heads: int, feed_forward: int, dropout: float
    ) -> None:
        super().__init__()
        self.u0 = nn.Parameter(torch.empty(width))
        nn.init.normal_(self.u0, std=0.02)
        self.blocks = nn.ModuleList(
            PostNormBlock(width, heads, feed_forward, dropout) for _ in range(layers)
        )

    def forward(self, visible: Tensor, places: Tensor | None = None) -> Tensor:
        """Summarise the visible patches, once or for each masked location.

        Args:
            visible: (B, K, D), the vectors of the visible patches, with their positions added.
            places: (B, M, D), the positions of the masked locations, for a query each. A query
                attends to the visible patches and to itself. No patch attends to a query, so the
                locations are independent of each other. None: one query, u0, which is part of the
                sequence.

        Returns:
            u (B, D), or with `places` v (B, M, D).
        """
        if places is None:
            queries = self.u0.to(visible.dtype).expand(len(visible), 1, -1)
        else:
            queries = (self.u0 + places).to(visible.dtype)
        sequence = torch.cat([queries, visible], dim=1)
        m, s = queries.shape[1], sequence.shape[1]
        allowed = None
        if places is not None:
            token = torch.arange(s, device=sequence.device)
            allowed = (token >= m) | (token[:, None] == token)
        for block in self.blocks[:-1]:
            sequence = block(sequence, allowed=allowed)
        # Only the queries of the last block are used: the other tokens' MLP would be wasted.
        allowed = None if allowed is None else allowed[:m]
        pooled: Tensor = self.blocks[-1](sequence, m, allowed)
        return pooled[:, 0] if places is None else pooled
