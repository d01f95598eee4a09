"""The section `model`: P, A, positions and masking."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from fastselfie.config.base import PositiveFloat, PositiveInt, Section


class ModelConfig(Section):
    """The network. Defaults as in the paper: ResNet-50 of width 64, D = 16 x width = 1024."""

    stem: Literal["imagenet", "cifar"] = "imagenet"
    """imagenet: 7x7/2 conv and 3x3/2 max pool; cifar: 3x3/1 conv"""
    width: PositiveInt = 64
    """channels of the stem"""
    blocks: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] = (3, 4, 6, 3)
    """bottleneck blocks of each stage; P is the first three stages"""
    patch_size: PositiveInt = 32
    """side of a patch, in pixels"""
    mask_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.25
    """M = floor(fraction x N) patches are masked"""
    positions: Literal["learned", "row_column"] = "row_column"
    """one vector per location, or the sum of a row and a column vector"""
    position_std: PositiveFloat = 1.0
    """standard deviation of the initial position vectors, the same as u's. They must differ from
    the start: with BERT's 0.02 the quickstart learns several times slower"""
    query: Literal["summed", "pooled"] = "summed"
    """query of a masked location. summed, as in the paper: u + its position, where attention
    pooling makes one u from the visible patches. pooled, ours: attention pooling makes a query for
    each location from u0 + its position and the visible patches; the parameters are the same"""
    layers: PositiveInt = 3
    """attention pooling: number of transformer blocks"""
    heads: PositiveInt = 32
    """attention pooling: number of heads"""
    feed_forward: PositiveInt = 640
    """attention pooling: hidden width of the MLP"""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """attention pooling: on the attention weights and before each residual"""
    sync_batch_norm: bool = False
    """compute batch statistics over the images of all ranks; needs GPUs if there is more than one
    rank"""
    logit_scale: Literal["inverse_sqrt", "none", "cosine"] = "inverse_sqrt"
    """inverse_sqrt: divide scores by sqrt(D). none: raw scores, whose standard deviation is about
    10 at step 0, and the loss is far above ln M. cosine: the cosine of query and candidate, divided
    by temperature (Chen et al. 2020, SimCLR); needs query: pooled"""
    temperature: PositiveFloat = 0.1
    """see logit_scale: cosine"""

    @property
    def embedding_width(self) -> int:
        """D, the channels of P's output: 4 x width in stage 3, times a bottleneck's 4."""
        return 16 * self.width

    @property
    def stride(self) -> int:
        """Stride of P's output map, in pixels."""
        return 16 if self.stem == "imagenet" else 4

    def masked(self, patches: int) -> int:
        """Return M = floor(mask_fraction x N), the number of masked ones of N `patches`."""
        return math.floor(self.mask_fraction * patches)

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        if self.embedding_width % self.heads:
            raise ValueError(
                f"model.heads is {self.heads}: must divide 16 x model.width = "
                f"{self.embedding_width}"
            )
        if self.logit_scale == "cosine" and self.query != "pooled":
            raise ValueError(
                "model.logit_scale is cosine, which needs queries of unit length: set "
                "model.query=pooled"
            )
        # Smaller patches give strided convolutions on maps of one pixel. Their weight gradient is
        # wrong, often NaN, in torch 2.13 in bf16 on a CPU.
        if self.patch_size < self.stride:
            raise ValueError(
                f"model.patch_size is {self.patch_size}: must be at least {self.stride}, the "
                f"stride of P with model.stem = {self.stem}"
            )
        return self
