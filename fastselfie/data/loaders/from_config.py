"""Loaders and views that a config's `data` section describes."""

from __future__ import annotations

import torch

from fastselfie.config import DataConfig
from fastselfie.data.dataset import Source
from fastselfie.data.loaders.backends import choose_backend
from fastselfie.data.loaders.loader import Loader
from fastselfie.data.loaders.view import View


def view_of(data: DataConfig) -> View:
    """The view that a config's `data` section describes."""
    return View(
        size=data.image_size,
        crop="random_resized" if data.crop == "resized" else "pad",
        area=data.area,
        ratio=data.ratio,
        pad=data.pad,
        pad_mode=data.pad_mode,
        flip=data.flip,
    )


def choose_loader(data: DataConfig, source: Source, device: torch.device) -> tuple[str, str]:
    """The backend's name for the images of `source` by a config's `data` section, and why."""
    return choose_backend(data.loader, source, (view_of(data),), device)


def build_loader(source: Source, data: DataConfig, seed: int, device: torch.device) -> Loader:
    """The loader of `source` that a config's `data` section describes, for its streams."""
    return Loader(
        source,
        1,
        views=[view_of(data)],
        dtype=torch.float32,
        seed=seed,
        device=device,
        workers=data.workers,
        on_error=data.on_error,
        max_skipped_in_a_row=data.max_skipped_in_a_row,
        backend=data.loader,
    )
