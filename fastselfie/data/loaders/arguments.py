"""Checks of the arguments of `Loader`, and what they stand for."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from fastselfie.data.dataset import Source, find_place
from fastselfie.data.loaders.checks import require_numbers, require_whole
from fastselfie.data.loaders.view import View
from fastselfie.data.sources.parts import PARTS, open_part
from fastselfie.system.distributed import ALONE, Ranks

DTYPES = (torch.uint8, torch.float32, torch.bfloat16, torch.float16)


def expanded_views(one: View, views: Sequence[View] | None) -> tuple[View, ...]:
    """The views of a batch, each as often as its count says."""
    if views is None:
        return (one,)
    if isinstance(views, View) or not isinstance(views, Sequence):
        raise TypeError(f"views is {views!r}: it must be a list of View")
    for view in views:
        if not isinstance(view, View):
            raise TypeError(f"views holds {view!r}: it must be a list of View")
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
    world_size = require_whole("world_size", world_size, 1)
    rank = require_whole("rank", rank, 0)
    if rank >= world_size:
        raise ValueError(f"rank is {rank}: it must be below world_size, {world_size}")
    return Ranks(rank, world_size)


def usable_device(device: str | torch.device) -> torch.device:
    """The device, which must be there."""
    found = torch.device(device)
    if found.type not in ("cpu", "cuda"):
        raise ValueError(f"device is {device}: it must be cpu or cuda")
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is {device}, but torch sees no GPU")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device is {device}, but torch sees {torch.cuda.device_count()} GPUs")
    return found


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
    three = {
        name: require_numbers(name, default if values is None else values, 3)
        for name, values, default in (("mean", mean, (0.0,) * 3), ("std", std, (1.0,) * 3))
    }
    if not all(0 < value < math.inf for value in three["std"]):
        raise ValueError(f"std is {std}: it must be above 0")
    if dtype == torch.uint8:
        if mean is not None or std is not None:
            raise ValueError("mean and std need a dtype of floats, and dtype is torch.uint8")
        return None
    found = [torch.tensor(values, dtype=torch.float32, device=device) for values in three.values()]
    return found[0], found[1]


def opened_source(
    data: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Source, part: str
) -> Source:
    if isinstance(data, Source):
        return data
    paths = [data] if isinstance(data, (str, os.PathLike)) else data
    listed = isinstance(paths, (list, tuple))
    if not listed or not all(isinstance(path, (str, os.PathLike)) for path in paths):
        raise TypeError(
            f"data is a {type(data).__name__}: it must be a path, a list of paths, or the train or "
            "held_out part of what open_dataset returns"
        )
    if part not in PARTS:
        raise ValueError(f"part is {part!r}: it must be one of {', '.join(PARTS)}")
    if not all(os.fspath(path) for path in paths):
        raise ValueError("data is empty: it must be a path")
    return open_part(find_place(data), part).source
