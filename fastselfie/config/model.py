"""The network: P, A, the positions and the task."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fastselfie.config.base import PositiveInt, Section


class ModelConfig(Section):
    """The network. The defaults are the paper's: ResNet-50 at width 64, D = 16 x width = 1024."""

    stem: Literal["imagenet", "cifar"] = Field(
        "imagenet", description="imagenet: 7x7/2 conv and 3x3/2 max pool; cifar: 3x3/1 conv"
    )
    width: PositiveInt = Field(64, description="channels of the stem")
    blocks: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] = Field(
        (3, 4, 6, 3), description="bottlenecks in each stage; P is the first three"
    )
    end_norm: bool = Field(
        True,
        description="batch norm and ReLU at the end of P, before its pooling: a pre-activation "
        "network cut there has neither; false is an ablation, where a finetuned ResNet's fourth "
        "stage begins with a fresh norm",
    )
    patch_size: PositiveInt = Field(32, description="side of a patch, pixels")
    mask_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        0.25, description="M = floor(fraction x N) patches are masked"
    )
    positions: Literal["learned", "row_column"] = Field(
        "row_column", description="one vector a location, or a row and a column vector summed"
    )
    position_std: Annotated[float, Field(gt=0.0)] = Field(
        1.0,
        description="of the initial position vectors; u has 1 too. The places must be told apart "
        "from the start: with BERT's 0.02 the quickstart learns several times more slowly",
    )
    encoder_positions: bool = Field(
        True, description="add positions to the visible patches; false is an ablation"
    )
    layers: PositiveInt = Field(3, description="attention pooling: transformer blocks")
    heads: PositiveInt = Field(32, description="attention pooling: heads")
    feed_forward: PositiveInt = Field(640, description="attention pooling: hidden width of the MLP")
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.1, description="attention pooling: on the attention weights and before each residual"
    )
    sync_batch_norm: bool = Field(
        False,
        description="batch norm sees the images of all processes' passes, not of one's; needs "
        "GPUs where there is more than one process",
    )
    logit_scale: Literal["inverse_sqrt", "none"] = Field(
        "inverse_sqrt",
        description="scores are divided by sqrt(D): raw ones spread by about 10 at step 0, "
        "where the loss is then far above ln M",
    )

    @property
    def embedding_width(self) -> int:
        """D: the channels at the end of stage 3, a bottleneck's 4 x 4 x width."""
        return 16 * self.width

    @property
    def stride(self) -> int:
        """Pixels along a side for each place of the map at P's end."""
        return 16 if self.stem == "imagenet" else 4

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        if self.embedding_width % self.heads:
            raise ValueError(
                f"model.heads is {self.heads}: it must divide 16 x model.width = "
                f"{self.embedding_width}"
            )
        # Below it convolutions stride over maps of one pixel, whose weight gradient torch 2.13 has
        # wrong, often NaN, in bf16 on a CPU.
        if self.patch_size < self.stride:
            raise ValueError(
                f"model.patch_size is {self.patch_size}: model.stem = {self.stem} leaves a pixel "
                f"of each {self.stride} of a side, so it must be at least that"
            )
        return self
