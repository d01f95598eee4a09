"""Every way to turn samples into batches, behind one signature (`Loader`)."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fastselfie.config import DataConfig
from fastselfie.data.loaders.base import Batch, Index, Loader, SampleStream
from fastselfie.data.loaders.folder import FolderLoader
from fastselfie.data.loaders.resident import ResidentLoader
from fastselfie.data.loaders.synthetic import SyntheticLoader
from fastselfie.data.sources import Source
from fastselfie.device import total_memory

__all__ = [
    "Batch",
    "FolderLoader",
    "Index",
    "Loader",
    "ResidentLoader",
    "SampleStream",
    "SyntheticLoader",
    "build_loader",
    "choose_loader",
]

_RESIDENT_SHARE = 0.25  # of the device's memory


def choose_loader(data: DataConfig, count: int, device: torch.device) -> tuple[str, str]:
    """The loader's name for `count` images, and why."""
    if data.loader != "auto":
        return data.loader, f"data.loader: {data.loader}"
    side = data.image_size + 2 * data.pad
    size = count * side * side * 3
    if data.crop == "pad" and size < _RESIDENT_SHARE * total_memory(device):
        return "resident", f"the padded set takes {size / 1e6:,.0f} MB on {device.type}"
    return "folder", "the set is cropped from files"


_LOADERS: dict[str, Callable[[Source, DataConfig, int, torch.device], Loader]] = {
    "folder": FolderLoader,
    "resident": ResidentLoader,
    "synthetic": SyntheticLoader,
}


def build_loader(source: Source, data: DataConfig, seed: int, device: torch.device) -> Loader:
    """The loader that `choose_loader` names, over `source`."""
    name, _ = choose_loader(data, len(source), device)
    return _LOADERS[name](source, data, seed, device)
