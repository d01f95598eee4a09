"""Checks of the arguments of `Loader`, and what they stand for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from fastselfie.data.dataset import Source, expanded, open_part
from fastselfie.data.loaders.view import View
from fastselfie.errors import UserError
from fastselfie.system.distributed import ALONE, Ranks

DTYPES = (torch.uint8, torch.float32, torch.bfloat16, torch.float16)


def expanded_views(one: View, views: Sequence[View] | None) -> tuple[View, ...]:
    """The views of a batch, each as often as its count says."""
    if views is None:
        return (one,)
    for view in views:
        if not isinstance(view, View):
            raise TypeError(f"views holds {view!r}: it must be a sequence of View")
    if not views:
        raise ValueError("views is empty: give at least one View")
    if one != View():
        raise ValueError("views is given: size, crop, area, ratio, pad and flip belong into it")
    return tuple(view for view in views for _ in range(view.count))


def ranks_of_group(rank: int | None, world_size: int | None) -> Ranks:
    if (rank is None) != (world_size is None):
        raise ValueError("rank and world_size: give both or neither")
    if rank is None or world_size is None:
        if not (dist.is_available() and dist.is_initialized()):
            return ALONE
        rank, world_size = dist.get_rank(), dist.get_world_size()
    require_whole("world_size", world_size, 1)
    require_whole("rank", rank, 0)
    if rank >= world_size:
        raise ValueError(f"rank is {rank}: it must be below world_size, {world_size}")
    return Ranks(rank, world_size)


def normalization(
    dtype: torch.dtype,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    device: torch.device,
) -> tuple[Tensor, Tensor] | None:
    """mean and std, (3,) each on the device; None for uint8."""
    if dtype not in DTYPES:
        names = ", ".join(str(each) for each in DTYPES)
        raise ValueError(f"dtype is {dtype}: it must be one of {names}")
    for name, values in (("mean", mean), ("std", std)):
        if values is not None and len(values) != 3:
            raise ValueError(f"{name} is {values}: it must have three numbers")
    if dtype == torch.uint8:
        if mean is not None or std is not None:
            raise ValueError("mean and std need a dtype of floats, and dtype is torch.uint8")
        return None
    return (
        torch.tensor([0.0] * 3 if mean is None else list(mean), device=device),
        torch.tensor([1.0] * 3 if std is None else list(std), device=device),
    )


def opened_source(data: str | os.PathLike[str] | Source, part: str) -> Source:
    if not isinstance(data, (str, os.PathLike)):
        if not isinstance(data, Source):
            raise TypeError(f"data is {data!r}: it must be a path or a source of open_dataset")
        return data
    found = open_part(expanded(Path(data)), part)
    if found is None:
        raise UserError(f"{data}: holds no {part} images")
    return found[0]


def require_whole(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is {value!r}: it must be a whole number")
    if value < least:
        raise ValueError(f"{name} is {value}: it must be at least {least}")
