"""The section `reproduce`: learning-rate search and reference values."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fastselfie.config.base import Free, PositiveFloat, PositiveInt, Section


class ReproduceConfig(Section):
    """The protocol of `fastselfie reproduce`. Defaults as in the paper."""

    grid: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (
        0.01, 0.02, 0.05, 0.1, 0.2, 0.4,
    )  # fmt: skip
    """maximum learning rates to try, for each arm and share of the labels"""
    widen: Annotated[int, Field(ge=0, le=10)] = 0
    """maximum number of extra rates if the best one is at an end of the grid; each continues the
    grid by its ratio at that end, in both arms"""
    splits: Annotated[PositiveInt, Field(le=10)] = 1
    """number of 90/10 splits of the labelled images over which a rate's accuracy is averaged; their
    validation parts are disjoint if there are enough images. With 50 images to validate on, one
    split is noise"""
    paper: Free[Literal["cifar10", "imagenet32", "imagenet224"] | None] = None
    """row of the paper's Table 1 to compare with; null: none"""
