"""Straightforward code: Selfie's training step as one would first write it from the paper.

float32, NCHW and eager: normalise the images, cut them with F.unfold, one forward pass of P, gather
the visible and the masked patches, nn.TransformerEncoder, a batched product of queries and
candidates, cross-entropy, plain SGD. step.py compares it with ours, and a test checks that both
give the same loss and gradients. It imports nothing of fastselfie, so that no optimisation of ours
reaches it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """Sizes of the network and its task, named as the keys of a config."""

    stem: str
    width: int
    blocks: tuple[int, ...]
    patch_size: int
    patches: int
    masked: int
    layers: int
    heads: int
    feed_forward: int
    dropout: float
    row_column: bool
    scale: float


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        inner = outputs // 4
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(x))
        shortcut = x if self.downsample is None else self.downsample(y)
        y = self.conv1(y)
        y = self.conv2(F.relu(self.norm2(y)))
        y = self.conv3(F.relu(self.norm3(y)))
        return cast(Tensor, y + shortcut)


class PatchNetwork(nn.Module):
    """P: patches (B, 3, P, P) to features (B, D)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        if shape.stem == "imagenet":
            stem: list[nn.Module] = [nn.Conv2d(3, shape.width, 7, 2, 3, bias=False),
                                     nn.MaxPool2d(3, 2, 1)]  # fmt: skip
        else:
            stem = [nn.Conv2d(3, shape.width, 3, 1, 1, bias=False)]
        blocks: list[nn.Module] = []
        inputs = shape.width
        for stage, count in enumerate(shape.blocks[:3]):
            outputs = 4 * shape.width * 2**stage
            for i in range(count):
                blocks.append(Bottleneck(inputs, outputs, 2 if stage > 0 and i == 0 else 1))
                inputs = outputs
        self.layers = nn.Sequential(*stem, *blocks, nn.BatchNorm2d(inputs), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.layers(x)).mean(dim=(2, 3))


class StraightforwardSelfie(nn.Module):
    """The network: images (B, 3, H, W) float32 and order (B, N), visible first, to the loss."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = 16 * shape.width
        self.shape = shape
        self.patch_network = PatchNetwork(shape)
        layer = nn.TransformerEncoderLayer(width, shape.heads, shape.feed_forward, shape.dropout,
                                           "gelu", batch_first=True)  # fmt: skip
        self.encoder = nn.TransformerEncoder(layer, shape.layers, enable_nested_tensor=False)
        self.u0 = nn.Parameter(torch.randn(width) * 0.02)
        side = round(shape.patches**0.5)
        if shape.row_column:
            self.rows = nn.Parameter(torch.randn(side, width))
            self.columns = nn.Parameter(torch.randn(side, width))
        else:
            self.table = nn.Parameter(torch.randn(shape.patches, width))

    def forward(self, images: Tensor, order: Tensor) -> Tensor:
        side, masked = self.shape.patch_size, self.shape.masked
        b, n = order.shape
        columns = F.unfold(images, side, stride=side)  # (B, 3 P P, N)
        patches = columns.transpose(1, 2).reshape(b * n, 3, side, side)
        h_bnd = self.patch_network(patches).view(b, n, -1)
        h_bnd = h_bnd.gather(1, order[:, :, None].expand_as(h_bnd))
        positions = self.table if not self.shape.row_column else (
            (self.rows[:, None] + self.columns[None]).flatten(0, 1)
        )  # fmt: skip
        located = positions[order]  # (B, N, D)
        visible = h_bnd[:, :-masked] + located[:, :-masked]
        first = self.u0.expand(b, 1, -1)
        u = self.encoder(torch.cat([first, visible], dim=1))[:, :1]
        queries = u + located[:, -masked:]
        scores = torch.bmm(queries, h_bnd[:, -masked:].transpose(1, 2)) * self.shape.scale
        right = torch.arange(masked, device=scores.device).repeat(b)
        return F.cross_entropy(scores.flatten(0, 1), right)


def normalised(images: Tensor, flip: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Normalise (B, H, W, 3) uint8 to (B, 3, H, W) in the dtype of `mean`; mirror by `flip`."""
    floats = images.permute(0, 3, 1, 2).to(mean.dtype).div(255)
    floats = torch.where(flip[:, None, None, None], floats.flip(-1), floats)
    return (floats - mean[:, None, None]) / std[:, None, None]


_ATTENTION = {
    "qkv.weight": "self_attn.in_proj_weight", "qkv.bias": "self_attn.in_proj_bias",
    "out": "self_attn.out_proj", "fc1": "linear1", "fc2": "linear2",
}  # fmt: skip


def their_names(ours: Iterable[str], theirs: StraightforwardSelfie) -> dict[str, str]:
    """Return the name here of each of fastselfie's weights."""
    ours = list(ours)
    here = [name for name in theirs.state_dict() if name.startswith("patch_network.")]
    # Both list the weights of P in the order of their use.
    named = dict(zip([n for n in ours if n.startswith("patch_network.")], here, strict=True))
    for name in ours:
        if name.startswith("pooling.blocks."):
            number, rest = name.removeprefix("pooling.blocks.").split(".", 1)
            for own, other in _ATTENTION.items():
                rest = other + rest.removeprefix(own) if rest.startswith(own) else rest
            named[name] = f"encoder.layers.{number}.{rest}"
        elif name not in named:
            named[name] = name.removeprefix("pooling.").removeprefix("positions.")
    return named
