"""From a batch of pixels to a network's input: normalized floats, whole or cut into patches."""

from __future__ import annotations

import torch
from torch import Tensor

from fastselfie.config import Config
from fastselfie.data import draws
from fastselfie.data.loaders.batch import Batch
from fastselfie.data.loaders.to_device import to_device
from fastselfie.kernels.patchify import patchify
from fastselfie.system.accelerator import Accelerator
from fastselfie.system.trace_ranges import trace_range


def draw_masks(batch: Batch, seed: int, patches: int) -> Tensor:
    """The places of each image's patches, visible first and masked last: (B, N) int64.

    The draw belongs to (seed, epoch, sample), see `patch_orders`. patches: N.
    """
    order = draws.patch_orders(seed, batch.index.epochs, batch.index.samples, patches)
    return to_device(torch.from_numpy(order), batch.images.device)


class InputTransform:
    """Turns the pixels of a batch into the network's input: patches, or whole images.

    Args:
        config: Of the run; says how large patches are and how pixels are normalized.
        accelerator: Where the batches are, kept in `self.accelerator`.
        batch: Images in a training pass. Measuring takes at most as many, in `self.batch`.
    """

    def __init__(self, config: Config, accelerator: Accelerator, batch: int) -> None:
        self.accelerator = accelerator
        self.batch = min(256, batch)
        self.seed = config.seed
        self.patch_size = config.model.patch_size
        self.grid = config.grid
        self.mean = torch.tensor(config.data.mean, device=accelerator.device)
        self.std = torch.tensor(config.data.std, device=accelerator.device)
        self.dtype = accelerator.precision.dtype
        self.impl = config.runtime.kernels

    def patches(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Draw each image's mask, and cut the image into patches.

        Returns:
            (B, N, 3, P, P), visible patches first and masked last, where P is in proportion to the
            images; and their places, as `draw_masks` gives them.
        """
        order = draw_masks(batch, self.seed, self.grid**2)
        return self._cut(batch, order, batch.images.shape[1] // self.grid, self.dtype), order

    def whole(self, batch: Batch, dtype: torch.dtype | None = None) -> Tensor:
        """(B, 3, H, W), in the accelerator's precision or in `dtype`."""
        order = batch.images.new_zeros((len(batch.images), 1), dtype=torch.int64)
        return self._cut(batch, order, batch.images.shape[1], dtype or self.dtype)[:, 0]

    def _cut(self, batch: Batch, order: Tensor, side: int, dtype: torch.dtype) -> Tensor:
        with trace_range("patchify"):
            return patchify(
                batch.images, batch.flip, order, side, self.mean, self.std, dtype, self.impl
            )
