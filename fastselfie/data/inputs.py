"""From a batch of pixels to a network's input: normalized floats, whole or cut into patches."""

from __future__ import annotations

import torch
from torch import Tensor

from fastselfie.config import Config
from fastselfie.data import draws
from fastselfie.data.loaders.batch import Batch
from fastselfie.data.loaders.to_device import to_device
from fastselfie.kernels.patch_changes import UNCHANGED, PatchChanges
from fastselfie.kernels.patchify import patchify
from fastselfie.system.accelerator import Accelerator
from fastselfie.system.trace_ranges import trace_range


def draw_masks(batch: Batch, seed: int, patches: int) -> Tensor:
    """The places of each image's patches, visible first and masked last: (B, N) int64.

    The draw belongs to (seed, epoch, sample), see `patch_orders`. patches: N.
    """
    order = draws.patch_orders(seed, batch.index.epochs, batch.index.samples, patches)
    return to_device(torch.from_numpy(order), batch.images.device)


def draw_changes(batch: Batch, config: Config) -> PatchChanges:
    """Draw how pretraining changes the patch at each place of the grid of each image.

    The draws belong to (seed, epoch, sample, place), see `patch_corners` and `patch_colours`.

    Args:
        batch: The samples.
        config: Of the run.
    """
    task, window, device = config.pretrain, config.patch_window, batch.images.device
    side = config.model.patch_size
    samples = (config.seed, batch.index.epochs, batch.index.samples, config.patches)
    corners, grey, tone = None, None, None
    if window < side and task.patch_jitter:
        drawn = draws.patch_corners(*samples, side - window)
        corners = to_device(torch.from_numpy(drawn), device)
    ranges = (task.patch_contrast, task.patch_brightness)
    if task.patch_grey or any(ranges):
        colours = draws.patch_colours(*samples, task.patch_grey, *ranges)
        grey, tone = (to_device(torch.from_numpy(drawn), device) for drawn in colours)
    return PatchChanges(window, corners, grey, tone)


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
        self.config = config
        self.patch_size = config.model.patch_size
        self.grid = config.grid
        self.mean = torch.tensor(config.data.mean, device=accelerator.device)
        self.std = torch.tensor(config.data.std, device=accelerator.device)
        self.dtype = accelerator.precision.dtype
        self.impl = config.runtime.kernels

    def patches(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Draw each image's mask and how its patches change, and cut the image into patches.

        Returns:
            (B, N, 3, W, W), visible patches first and masked last, where W is the window of P;
            and their places, as `draw_masks` gives them.
        """
        order = draw_masks(batch, self.config.seed, self.grid**2)
        changes = draw_changes(batch, self.config)
        return self._cut(batch, order, self.patch_size, self.dtype, changes), order

    def whole(self, batch: Batch, dtype: torch.dtype | None = None) -> Tensor:
        """(B, 3, H, W), in the accelerator's precision or in `dtype`."""
        order = batch.images.new_zeros((len(batch.images), 1), dtype=torch.int64)
        return self._cut(batch, order, batch.images.shape[1], dtype or self.dtype)[:, 0]

    def _cut(
        self,
        batch: Batch,
        order: Tensor,
        side: int,
        dtype: torch.dtype,
        changes: PatchChanges = UNCHANGED,
    ) -> Tensor:
        taken = (batch.images, batch.flip, order, side, self.mean, self.std, dtype, self.impl)
        with trace_range("patchify"):
            return patchify(*taken, changes)
