"""Selfie (paper, section 3) and the classifiers that are finetuned from its parts.

P encodes every patch, A pools the visible ones, and each masked location scores the candidates.
B images, N patches, M of them masked, K = N - M visible, D the width.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastselfie.config import Config, ModelConfig
from fastselfie.kernels.distractor_score import distractor_score
from fastselfie.kernels.query_score import query_score
from fastselfie.kernels.reference import distractor_scores, query_scores
from fastselfie.models.attention_pooling import AttentionPooling
from fastselfie.models.positions import Positions
from fastselfie.models.resnet import ExecutionOptions, Head, ResNetV2
from fastselfie.system.trace_ranges import trace_range


class Encoded(NamedTuple):
    """The inputs of the score.

    Attributes:
        query: of `model.query: summed` u (B, D); of pooled v (B, M, D), one for each location.
        h: (B, M, D), the masked patches. They have no positions added, which would reveal the
            answer.
    """

    query: Tensor
    h: Tensor


class Selfie(nn.Module):
    """The pretraining network: P, A and the positions.

    Args:
        model: sizes and initialisation.
        grid: patches along a side; N = grid x grid.
        options: see `ExecutionOptions`.

    Raises:
        ValueError: fewer than 2 patches would be masked.

    Example:
        >>> model = Selfie(ModelConfig(stem="cifar", width=16, heads=8, patch_size=8), grid=4)
        >>> loss, right = model(patches, order)  # (B, 16, 3, 8, 8); (B, 16) int64
    """

    def __init__(
        self,
        model: ModelConfig,
        grid: int,
        options: ExecutionOptions = ExecutionOptions(),  # noqa: B008
    ) -> None:
        super().__init__()
        width = model.embedding_width
        self.masked = model.masked(grid**2)
        if self.masked < 2:
            raise ValueError(
                f"grid {grid}: mask_fraction {model.mask_fraction} masks {self.masked} of "
                f"{grid**2} patches, and the task needs 2: increase one of them"
            )
        self.pooled = model.query == "pooled"
        self.kernels = options.kernels
        self.cosine = model.logit_scale == "cosine"
        self.scale = {
            "inverse_sqrt": width**-0.5, "none": 1.0, "cosine": 1 / model.temperature
        }[model.logit_scale]  # fmt: skip
        self.patch_network = _build_patch_network(model, options)
        self.pooling = _build_pooling(model)
        self.positions = _build_positions(model, grid)

    def vectors(self, patches: Tensor) -> Tensor:
        """Encode every patch by P: (B, N, 3, P, P) -> h (B, N, D)."""
        b, n = patches.shape[:2]
        with trace_range("P"):
            h: Tensor = self.patch_network(patches.flatten(0, 1)).view(b, n, -1)
        return h

    def encoded(self, h_bnd: Tensor, order: Tensor) -> Encoded:
        """Encode the visible vectors, with their positions, by A.

        Args:
            h_bnd: (B, N, D), see `vectors`.
            order: (B, N) int64, their locations, visible first and masked last.
        """
        visible = order.shape[1] - self.masked
        return Encoded(self.query(h_bnd[:, :visible], order), h_bnd[:, visible:])

    def query(self, visible: Tensor, order: Tensor) -> Tensor:
        """Summarise the visible patches by A; see `Encoded`.

        Args:
            visible: (B, K, D), their vectors by P.
            order: (B, K + M) int64, the locations, visible first and masked last.
        """
        k = visible.shape[1]
        with trace_range("A"):
            positions = self.positions()
            visible = visible + positions[order[:, :k]].to(visible.dtype)
            places = positions[order[:, k:]] if self.pooled else None
            query: Tensor = self.pooling(visible, places)
        return query

    def score(self, encoded: Encoded, order: Tensor) -> tuple[Tensor, Tensor]:
        """Loss () and the number of right answers () int64, out of B x M."""
        locations, positions = order[:, -self.masked :], self.positions.vectors()
        query, h = encoded
        with trace_range("scoring"):
            if self.pooled:
                return query_score(*self._directions(query, h), self.scale, self.kernels)
            return distractor_score(query, h, positions, locations, self.scale, self.kernels)

    def _directions(self, v: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Divide queries and candidates by their norms in float32, if scores are cosines."""
        if not self.cosine:
            return v, h
        exact = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (v, h))
        v, h = (F.normalize(x, dim=-1) for x in exact)
        return v, h

    def forward(self, patches: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
        """Loss () and the number of right answers () int64, out of B x M.

        Args:
            patches: (B, N, 3, P, P), visible first and masked last.
            order: (B, N) int64, their locations.
        """
        return self.score(self.encoded(self.vectors(patches), order), order)

    def scores(self, patches: Tensor, order: Tensor) -> Tensor:
        """(B, M, M): scores of masked locations by candidates. Inputs: see `forward`."""
        query, h = self.encoded(self.vectors(patches), order)
        if self.pooled:
            return query_scores(*self._directions(query, h), self.scale)
        locations = order[:, -self.masked :]
        return distractor_scores(query, h, self.positions(), locations, self.scale)


class AttentionClassifier(nn.Module):
    """P on every patch of an image, A over all of them, and a classifier on u.

    This is the paper's second form of finetuning, "ResNet-36 + attention pooling". Positions are
    added as pretraining adds them to visible patches.

    Args:
        model: sizes and initialisation.
        grid: patches along a side.
        classes: outputs.
        options: see `ExecutionOptions`.
    """

    def __init__(
        self,
        model: ModelConfig,
        grid: int,
        classes: int,
        options: ExecutionOptions = ExecutionOptions(),  # noqa: B008
    ) -> None:
        super().__init__()
        self.grid = grid
        self.patch_network = _build_patch_network(model, options)
        self.pooling = _build_pooling(model)
        self.pooled = model.query == "pooled"
        self.positions = _build_positions(model, grid)
        self.width = model.embedding_width
        self.head = Head(self.width, classes)

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> u (B, D): the input of the classifier."""
        with trace_range("P"):
            h_bnd = patch_vectors(self.patch_network, images, self.grid)
        with trace_range("A"):
            h_bnd = h_bnd + self.positions().to(h_bnd.dtype)
            # With pooled queries the patches attend to no query, as in pretraining. The image has
            # one query, which has no position.
            places = torch.zeros_like(h_bnd[:, :1]) if self.pooled else None
            u: Tensor = self.pooling(h_bnd, places)
        return u.flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, classes)."""
        logits: Tensor = self.head(self.features(images))
        return logits

    def start_from(self, pretrained: Selfie) -> None:
        """Copy P, A with u0, and the positions; the classifier keeps its initial values."""
        self.patch_network.load_state_dict(pretrained.patch_network.state_dict())
        self.pooling.load_state_dict(pretrained.pooling.state_dict())
        self.positions.load_state_dict(pretrained.positions.state_dict())


def cut_patches(images: Tensor, grid: int) -> Tensor:
    """(B, 3, H, W) -> (B x N, 3, P, P), row by row, in channels-last memory like `patchify`."""
    b, c, height, width = images.shape
    h, w = height // grid, width // grid
    patches = images.reshape(b, c, grid, h, grid, w).permute(0, 2, 4, 3, 5, 1)
    return patches.reshape(b * grid * grid, h, w, c).permute(0, 3, 1, 2)


def patch_vectors(patch_network: ResNetV2, images: Tensor, grid: int) -> Tensor:
    """(B, 3, H, W) -> h (B, N, D): P of every patch, row by row."""
    h: Tensor = patch_network(cut_patches(images, grid))
    return h.view(len(images), grid**2, -1)


class PatchConcat(nn.Module):
    """Features of an image: the vectors of its patches by P, concatenated.

    P's pooled feature of a whole image tells what it shows; these also tell where.
    """

    def __init__(self, patch_network: ResNetV2, grid: int) -> None:
        super().__init__()
        self.patch_network, self.grid = patch_network, grid

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, N x D)."""
        return patch_vectors(self.patch_network, images, self.grid).flatten(1)


Classifier: TypeAlias = ResNetV2 | AttentionClassifier


def build_selfie(config: Config) -> Selfie:
    """Build the pretraining network of a config."""
    return Selfie(config.model, config.grid, _execution_options(config))


def build_patch_network(config: Config) -> ResNetV2:
    """Build P alone."""
    return _build_patch_network(config.model, _execution_options(config))


def build_classifier(config: Config, classes: int, start: Selfie | None = None) -> Classifier:
    """Build the network that is finetuned, in the form of `finetune.form`.

    Args:
        config: sizes, initialisation and kernels.
        classes: outputs.
        start: the pretrained network, whose weights are copied; None: all are initial.
    """
    options = _execution_options(config)
    if config.finetune.form == "attention_pooling":
        pooled = AttentionClassifier(config.model, config.grid, classes, options)
        if start is not None:
            pooled.start_from(start)
        return pooled
    model = config.model
    network = ResNetV2(model.blocks, model.width, model.stem, classes, options)
    if start is not None:
        network.start_from(start.patch_network)
    return network


def _build_patch_network(model: ModelConfig, options: ExecutionOptions) -> ResNetV2:
    """Build P: the first three stages and average pooling (paper: 'the first three blocks')."""
    return ResNetV2(model.blocks[:3], model.width, model.stem, None, options)


def _build_pooling(model: ModelConfig) -> AttentionPooling:
    return AttentionPooling(
        model.embedding_width, model.layers, model.heads, model.feed_forward, model.dropout
    )


def _build_positions(model: ModelConfig, grid: int) -> Positions:
    return Positions(model.positions, grid, model.embedding_width, model.position_std)


def _execution_options(config: Config) -> ExecutionOptions:
    return ExecutionOptions(config.runtime.activation_checkpointing, config.runtime.kernels)
