"""From a batch of pixels to a network's input: normalised floats, cut into patches or whole."""

from __future__ import annotations

import torch
from torch import Tensor

from fastselfie.config import Config
from fastselfie.data.loaders import Batch
from fastselfie.kernels.patchify import patchify
from fastselfie.system.accelerator import Accelerator
from fastselfie.system.trace_ranges import trace_range


class InputTransform:
    """Turns the pixels of a batch into the network's input: patches, or whole images.

    batch: images a forward pass when measuring, at most as many as a training pass has.
    """

    def __init__(self, config: Config, accelerator: Accelerator, batch: int) -> None:
        self.batch = min(256, batch)
        self.patch_size = config.model.patch_size
        self.grid = config.grid
        self.mean = torch.tensor(config.data.mean, device=accelerator.device)
        self.std = torch.tensor(config.data.std, device=accelerator.device)
        self.dtype = accelerator.precision.dtype
        self.impl = config.runtime.kernels

    def patches(self, batch: Batch) -> Tensor:
        """(B, N, 3, P, P), visible first and masked last; P is in proportion to the images."""
        return self._cut(batch, batch.images.shape[1] // self.grid)

    def whole(self, batch: Batch, dtype: torch.dtype | None = None) -> Tensor:
        """(B, 3, H, W), in the machine's precision or in `dtype`."""
        return self._cut(batch, batch.images.shape[1], dtype)[:, 0]

    def _cut(self, batch: Batch, side: int, dtype: torch.dtype | None = None) -> Tensor:
        with trace_range("patchify"):
            return patchify(
                batch.images,
                batch.flip,
                batch.order,
                side,
                self.mean,
                self.std,
                dtype or self.dtype,
                self.impl,
            )
