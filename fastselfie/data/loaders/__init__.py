"""Loaders: from a source of images to batches on the device.

`Loader` is the class that everybody uses. The modules native, folder, resident, synthetic, ffcv and
dali are its backends, which turn indices into pixels (`Backend`). to_device copies them to the GPU.
"""

from __future__ import annotations

from fastselfie.data.loaders.backend import Backend, BackendOptions
from fastselfie.data.loaders.backends import register_backend
from fastselfie.data.loaders.batch import Batch, DecodedBatch, Index
from fastselfie.data.loaders.from_config import build_loader, choose_loader
from fastselfie.data.loaders.loader import Loader
from fastselfie.data.loaders.sampling import SampleStream
from fastselfie.data.loaders.view import View

__all__ = [
    "Backend",
    "BackendOptions",
    "Batch",
    "DecodedBatch",
    "Index",
    "Loader",
    "SampleStream",
    "View",
    "build_loader",
    "choose_loader",
    "register_backend",
]
