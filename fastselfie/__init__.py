"""FastSelfie: a high-throughput trainer for Selfie (arXiv 1906.02940), and its loader as a library.

The names in `__all__` are the public API. They are imported on use, so `import fastselfie` alone
loads neither torch nor numpy.

The folders and what each may import: docs/architecture.md, held by import-linter.

Shape legend, used in names everywhere: B images, N patches an image, M masked, K = N - M
visible, D width, H W C pixels, P patch side.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastselfie import jpeg as jpeg
    from fastselfie.config.load import load_config
    from fastselfie.config.model import ModelConfig
    from fastselfie.data.dataset import open_dataset
    from fastselfie.data.loaders import Loader, View
    from fastselfie.errors import UserError
    from fastselfie.kernels.distractor_score import distractor_score
    from fastselfie.kernels.patch_changes import PatchChanges
    from fastselfie.kernels.patchify import patchify
    from fastselfie.models.resnet import ResNetV2
    from fastselfie.models.selfie import Selfie
    from fastselfie.runs.load import load_run

__version__ = "0.2.0"

__all__ = [
    "Loader",
    "ModelConfig",
    "PatchChanges",
    "ResNetV2",
    "Selfie",
    "UserError",
    "View",
    "distractor_score",
    "load_config",
    "load_run",
    "open_dataset",
    "patchify",
]

_MODULES = {
    "Loader": "data.loaders",
    "ModelConfig": "config.model",
    "PatchChanges": "kernels.patch_changes",
    "ResNetV2": "models.resnet",
    "Selfie": "models.selfie",
    "UserError": "errors",
    "View": "data.loaders",
    "distractor_score": "kernels.distractor_score",
    "load_config": "config.load",
    "load_run": "runs.load",
    "open_dataset": "data.dataset",
    "patchify": "kernels.patchify",
}


def __getattr__(name: str) -> Any:
    if name == "jpeg":  # a public module
        return import_module("fastselfie.jpeg")
    if name not in _MODULES:
        raise AttributeError(f"module 'fastselfie' has no attribute {name!r}")
    return getattr(import_module(f"fastselfie.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
