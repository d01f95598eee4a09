"""Which backend decodes a set, and where its class is."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

import torch

from fastselfie.data.dataset import BetonSource, Source
from fastselfie.data.loaders.backend import Backend
from fastselfie.data.loaders.view import View
from fastselfie.errors import UserError
from fastselfie.system.resources import total_memory

_RESIDENT_SHARE = 0.25  # of the device's memory

# A class, or its module and name, imported on use: FFCV and DALI are extras and take seconds.
_BACKENDS: dict[str, type[Backend] | tuple[str, str]] = {
    "native": ("fastselfie.data.loaders.native", "NativeBackend"),
    "folder": ("fastselfie.data.loaders.folder", "FolderBackend"),
    "resident": ("fastselfie.data.loaders.resident", "ResidentBackend"),
    "synthetic": ("fastselfie.data.loaders.synthetic", "SyntheticBackend"),
    "ffcv": ("fastselfie.data.loaders.ffcv", "FfcvBackend"),
    "dali": ("fastselfie.data.loaders.dali", "DaliBackend"),
}
# The one command that adds an extra, from a checkout.
INSTALL = {
    "ffcv": "apt-get install libturbojpeg0-dev libopencv-dev pkg-config g++ (as root), then pip "
    "install setuptools wheel 'fastselfie[ffcv]' && pip install --no-deps --no-build-isolation "
    "ffcv==1.0.2",
    "dali": "pip install 'fastselfie[dali]'",
}


def choose_backend(
    backend: str, source: Source, views: Sequence[View], device: torch.device
) -> tuple[str, str]:
    """The name of the backend for the images of `source`, and why.

    Raises:
        ValueError: `backend` is unknown.
    """
    if backend != "auto":
        if backend not in _BACKENDS:
            raise ValueError(f"backend is {backend!r}: it must be auto or {', '.join(_BACKENDS)}")
        own = backend == "ffcv" and views[0].crop == "random_resized"
        note = "; the crops are FFCV's own, which no seed repeats" if own else ""
        return backend, f"data.loader: {backend}{note}"
    view = views[0]
    side = view.size + 2 * view.pad
    size = len(source) * side * side * 3
    small = view.crop == "pad" and size < _RESIDENT_SHARE * total_memory(device)
    if small and len(views) == 1:
        return "resident", f"the padded set takes {size / 1e6:,.0f} MB on {device.type}"
    if isinstance(source, BetonSource):
        return "native", "the set is a .beton file"
    return "folder", "the set is image files; `fastselfie prepare` makes a faster one"


def register_backend(name: str, made: type[Backend]) -> None:
    """Let `Loader(..., backend=name)` use the class `made`.

    Raises:
        ValueError: The name is that of a backend of the package.
    """
    if isinstance(_BACKENDS.get(name), tuple):
        raise ValueError(f"backend {name!r} is the package's own: choose another name")
    _BACKENDS[name] = made


def backend_class(name: str) -> type[Backend]:
    """The class of the backend `name`.

    Raises:
        UserError: It is an extra that is not installed; the message has the command that adds it.
    """
    found = _BACKENDS[name]
    if isinstance(found, type):
        return found
    module, attribute = found
    try:
        made: type[Backend] = getattr(import_module(module), attribute)
    except ImportError as error:
        # A shared library that is missing is an ImportError too: say which.
        reason = " ".join(str(error).split())
        raise UserError(
            f"the {name} loader is not installed here ({reason}): {INSTALL[name]}"
        ) from error
    return made
