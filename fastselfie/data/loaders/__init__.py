"""Every way to turn samples into batches, behind one signature (`Loader`)."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import torch

from fastselfie.config import DataConfig
from fastselfie.data.dataset import BetonSource, Source
from fastselfie.data.loaders.base import Batch, DecodedBatch, Index, Loader, SampleStream
from fastselfie.data.loaders.folder import FolderLoader
from fastselfie.data.loaders.native import NativeLoader
from fastselfie.data.loaders.resident import ResidentLoader
from fastselfie.data.loaders.synthetic import SyntheticLoader
from fastselfie.errors import UserError
from fastselfie.system.accelerator import total_memory

__all__ = [
    "Batch",
    "DecodedBatch",
    "FolderLoader",
    "Index",
    "Loader",
    "NativeLoader",
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
        own = data.loader == "ffcv" and data.crop == "resized"
        note = "; the crops are FFCV's own, which no seed repeats" if own else ""
        return data.loader, f"data.loader: {data.loader}{note}"
    side = data.image_size + 2 * data.pad
    size = len(source) * side * side * 3
    if data.crop == "pad" and size < _RESIDENT_SHARE * total_memory(device):
        return "resident", f"the padded set takes {size / 1e6:,.0f} MB on {device.type}"
    if isinstance(source, BetonSource):
        return "native", "the set is a .beton file"
    return "folder", "the set is image files; `fastselfie prepare` makes a faster one"


_Make = Callable[[Source, DataConfig, int, torch.device], Loader]

_LOADERS: dict[str, _Make] = {
    "native": NativeLoader,
    "folder": FolderLoader,
    "resident": ResidentLoader,
    "synthetic": SyntheticLoader,
}
# Extras: module and class, imported on use. Each takes seconds to import and may be missing.
_EXTRAS = {
    "ffcv": ("fastselfie.data.loaders.ffcv", "FfcvLoader"),
    "dali": ("fastselfie.data.loaders.dali", "DaliLoader"),
}
# The one command that adds an extra, from a checkout.
INSTALL = {
    "ffcv": "apt-get install libturbojpeg0-dev libopencv-dev pkg-config g++ (as root), then pip "
    "install setuptools wheel 'fastselfie[ffcv]' && pip install --no-deps --no-build-isolation "
    "ffcv==1.0.2",
    "dali": "pip install 'fastselfie[dali]'",
}


def build_loader(source: Source, data: DataConfig, seed: int, device: torch.device) -> Loader:
    """The loader that `choose_loader` names, over `source`."""
    name, _ = choose_loader(data, source, device)
    make = _LOADERS[name] if name in _LOADERS else _import_extra(name)
    return make(source, data, seed, device)


def _import_extra(name: str) -> _Make:
    module, loader = _EXTRAS[name]
    try:
        make: _Make = getattr(import_module(module), loader)
    except ImportError as error:
        # A shared library that is missing is an ImportError too: say which.
        reason = " ".join(str(error).split())
        raise UserError(
            f"data.loader is {name}, which is not installed here ({reason}): {INSTALL[name]}"
        ) from error
    return make
