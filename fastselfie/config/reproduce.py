"""How `fastselfie reproduce` finds its learning rates, and what it stands beside."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fastselfie.config.base import FREE, PositiveInt, Section


class ReproduceConfig(Section):
    """The protocol of `fastselfie reproduce`. The defaults are the paper's."""

    grid: tuple[Annotated[float, Field(gt=0.0)], ...] = Field(
        (0.01, 0.02, 0.05, 0.1, 0.2, 0.4),
        min_length=1,
        description="maximum learning rates that are tried, for each arm and share of the labels",
    )
    widen: Annotated[int, Field(ge=0, le=10)] = Field(
        0,
        description="further rates, at the most, where the best one is at an end of the grid: each "
        "beyond it by the grid's own ratio there, in both arms alike",
    )
    splits: Annotated[PositiveInt, Field(le=10)] = Field(
        1,
        description="90/10 splits of the labelled images that a rate's accuracy is the mean of, "
        "their tenths disjoint where there are images enough; with 50 to validate on one is noise",
    )
    paper: Literal["cifar10", "imagenet32", "imagenet224"] | None = Field(
        None,
        description="row of the paper's Table 1 that stands beside ours; null: none",
        json_schema_extra=FREE,
    )
