"""Loaders as a small config describes them, and what they give."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from conftest import tiny_config
from torch import Tensor

from fastselfie.data.dataset import open_dataset
from fastselfie.data.loaders import Loader, build_loader

CPU = torch.device("cpu")
Item = TypeVar("Item")


def make_loader(path: Path, kind: str, seed: int = 3, **data: Any) -> Loader:
    """The loader `kind` of the training images at `path`; `data` are keys of that section."""
    config = tiny_config(data={"train": str(path), "loader": kind, **data})
    return build_loader(open_dataset(config.data).train, config.data, seed, CPU)


def take(iterator: Generator[Item], count: int) -> list[Item]:
    """Up to `count` items, and the end of the iterator."""
    with closing(iterator):
        return list(islice(iterator, count))


def epoch_of(loader: Loader) -> list[tuple[Tensor, list[int]]]:
    """Copies of an epoch's images, and its labels."""
    return [(images.clone(), labels.tolist()) for images, labels in loader]
