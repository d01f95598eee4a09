"""Random pixels, made once: what a step costs when data costs nothing."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence

import torch

from fastselfie.data.dataset import Source
from fastselfie.data.loaders.backend import Backend, BackendOptions
from fastselfie.data.loaders.batch import DecodedBatch, Index
from fastselfie.data.loaders.to_device import to_device
from fastselfie.data.loaders.view import View

_POOL = 64  # distinct images: enough that batch statistics are those of noise


class SyntheticBackend(Backend):
    """As many images as the source has, but of noise, from a small pool on the device."""

    def __init__(self, source: Source, views: Sequence[View], options: BackendOptions) -> None:
        super().__init__(source, views, options)
        generator = torch.Generator().manual_seed(self.seed)
        shape = (_POOL, views[0].size, views[0].size, 3)
        pool = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        self.pool = pool.to(self.device)
        self.classes = len(source.classes)

    def load(self, plan: Iterator[Index], views: Sequence[View]) -> Generator[DecodedBatch]:
        del views  # noise is noise
        for samples, _ in plan:
            ids = to_device(torch.from_numpy(samples), self.device)
            yield DecodedBatch([self.pool[ids % _POOL]], ids % self.classes)
