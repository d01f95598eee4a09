"""A batch on its way from the decoder to the step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastselfie.data.draws import IntArray
from fastselfie.data.loaders.failures import Failures
from fastselfie.system.trace_ranges import trace_range


class Index(NamedTuple):
    """Which samples make a batch: ids (B,) int64, and the epoch (B,) int64 that each is drawn in.

    A batch may cross the end of an epoch, so the epoch belongs to the sample too.
    """

    samples: IntArray
    epochs: IntArray


class DecodedBatch(NamedTuple):
    """What a backend makes of an index.

    Attributes:
        views: The images in each view, (B, H, W, 3) uint8.
        labels: (B,) int64.
        failures: The rows that could not be decoded. Their pixels may be anything.
        flipped: Whether the images are mirrored already, where they are drawn to be.
    """

    views: Sequence[Tensor]
    labels: Tensor
    failures: Failures = ()
    flipped: bool = False


@dataclass(frozen=True)
class Batch:
    """Images on the device, with what is still to be done to them.

    Attributes:
        views: The images in each view, (B, H, W, 3) uint8.
        labels: (B,) int64.
        flips: For each view which images are to be mirrored, (B,) bool.
        index: Which samples they are.
    """

    views: tuple[Tensor, ...]
    labels: Tensor
    flips: tuple[Tensor, ...]
    index: Index

    @property
    def images(self) -> Tensor:
        """The images in the first view, (B, H, W, 3) uint8."""
        return self.views[0]

    @property
    def flip(self) -> Tensor:
        """Which images of the first view are to be mirrored, (B,) bool."""
        return self.flips[0]

    def shrunk(self, side: int | None) -> Batch:
        """The same samples, `side` pixels wide and high; None: as they are.

        The antialiased bilinear filter is the loaders' own. In parts: floats take four times the
        memory.
        """
        if side is None:
            return self
        with trace_range("patchify"):
            parts = [_shrink(images, side) for images in torch.split(self.images, 64)]
            return replace(self, views=(torch.cat(parts).contiguous(),))

    def split(self, size: int) -> Iterator[Batch]:
        """Micro-batches of `size` images, views of this one."""
        for start in range(0, len(self.images), size):
            part = slice(start, start + size)
            yield Batch(
                tuple(images[part] for images in self.views),
                self.labels[part],
                tuple(flip[part] for flip in self.flips),
                Index(self.index.samples[part], self.index.epochs[part]),
            )


def _shrink(images: Tensor, side: int) -> Tensor:
    pixels = images.permute(0, 3, 1, 2).float()
    small = F.interpolate(pixels, size=(side, side), mode="bilinear", antialias=True)
    return small.round().to(torch.uint8).permute(0, 2, 3, 1)
