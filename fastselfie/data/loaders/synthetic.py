"""Random pixels, made once: what a step costs when data costs nothing."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import torch

from fastselfie.config import DataConfig
from fastselfie.data.dataset import Source
from fastselfie.data.loaders.base import DecodedBatch, Index, Loader

_POOL = 64  # distinct images: enough that batch statistics are those of noise


class SyntheticLoader(Loader):
    """As many images as the source has, but of noise, from a small pool on the device."""

    def __init__(self, source: Source, data: DataConfig, seed: int, device: torch.device) -> None:
        super().__init__(len(source), data, seed, device)
        generator = torch.Generator().manual_seed(seed)
        shape = (_POOL, data.image_size, data.image_size, 3)
        pool = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        self.pool = pool.to(device)
        self.classes = len(source.classes)

    def load(self, plan: Iterator[Index], augment: bool) -> Generator[DecodedBatch]:
        del augment  # noise is noise
        for samples, _ in plan:
            ids = self._send(torch.from_numpy(samples))
            yield DecodedBatch(self.pool[ids % _POOL], ids % self.classes)
