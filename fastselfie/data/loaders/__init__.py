"""Every way to turn samples into batches, behind one signature (`Loader`)."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fastselfie.config import DataConfig
from fastselfie.data.loaders.base import Batch, Index, Loader, Pixels, SampleStream
from fastselfie.data.loaders.folder import FolderLoader
from fastselfie.data.loaders.native import NativeLoader
from fastselfie.data.loaders.resident import ResidentLoader
from fastselfie.data.loaders.synthetic import SyntheticLoader
from fastselfie.data.sources import BetonSource, Source
from fastselfie.device import total_memory

__all__ = [
    "Batch",
    "FolderLoader",
    "Index",
    "Loader",
    "NativeLoader",
    "Pixels",
    "ResidentLoader",
    "SampleStream",
    "SyntheticLoader",
    "build_loader",
    "choose_loader",
]

_RESIDENT_SHARE = 0.25  # of the device's memory


def choose_loader(data: DataConfig, source: Source, device: torch.device) -> tuple[str, str]:
    """The loader's name for the images of `source`, and why."""
    if data.loader != "auto":
        return data.loader, f"data.loader: {data.loader}"
    side = data.image_size + 2 * data.pad
    size = len(source) * side * side * 3
    if data.crop == "pad" and size < _RESIDENT_SHARE * total_memory(device):
        return "resident", f"the padded set takes {size / 1e6:,.0f} MB on {device.type}"
    if isinstance(source, BetonSource):
        return "native", "the set is a .beton file"
    return "folder", "the set is image files; `fastselfie prepare` makes a faster one"


_LOADERS: dict[str, Callable[[Source, DataConfig, int, torch.device], Loader]] = {
    "native": NativeLoader,
    "folder": FolderLoader,
    "resident": ResidentLoader,
    "synthetic": SyntheticLoader,
}


def build_loader(source: Source, data: DataConfig, seed: int, device: torch.device) -> Loader:
    """The loader that `choose_loader` names, over `source`."""
    name, _ = choose_loader(data, source, device)
    return _LOADERS[name](source, data, seed, device)
