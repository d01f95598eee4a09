"""A small set whole on the device: augmentation is one gather there, without workers."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastselfie.config import DataConfig
from fastselfie.data import random as rng
from fastselfie.data.dataset import ArraySource, Source
from fastselfie.data.loaders.base import DecodedBatch, Index, Loader
from fastselfie.data.loaders.crops import boxes, padded, read_box, shift_of
from fastselfie.data.random import IntArray
from fastselfie.errors import UserError
from fastselfie.kernels.host import gather_crops


class ResidentLoader(Loader):
    """Decodes and pads every image once; a batch is a gather of crops.

    On the host the gather is C++, and mirrors on its way; on a GPU patchify does that.
    """

    def __init__(self, source: Source, data: DataConfig, seed: int, device: torch.device) -> None:
        super().__init__(len(source), data, seed, device)
        self.pad = shift_of(data)
        images, failures = decode_all(source, data)
        labels = source.labels
        if failures:
            rows = self._stand_ins(len(source), failures)
            images, labels = images[rows], labels[rows]
        self.labels = torch.from_numpy(labels).to(device)
        whole = padded(images, self.pad, data.pad_mode) if self.pad else images
        self.images = torch.from_numpy(np.ascontiguousarray(whole)).to(device)

    def load(self, plan: Iterator[Index], augment: bool) -> Generator[DecodedBatch]:
        gather = self._gather_on_host if self.device.type == "cpu" else self._gather_on_device
        for index in plan:
            offsets = np.full((len(index.samples), 2), self.pad, dtype=np.int64)
            if augment and self.pad:
                offsets = rng.shifts(self.seed, index.epochs, index.samples, self.pad)
            yield gather(index, offsets, augment)

    def _gather_on_host(self, index: Index, offsets: IntArray, augment: bool) -> DecodedBatch:
        size = self.data.image_size
        images = np.empty((len(index.samples), size, size, 3), dtype=np.uint8)
        flips = self._flips(index, augment)
        gather_crops(self.images.numpy(), index.samples, offsets, flips, images)
        labels = self.labels[torch.from_numpy(index.samples)]
        return DecodedBatch(torch.from_numpy(images), labels, flipped=True)

    def _gather_on_device(self, index: Index, offsets: IntArray, augment: bool) -> DecodedBatch:
        rows = self._send(torch.from_numpy(index.samples))
        y, x = self._send(torch.from_numpy(offsets)).unbind(1)
        size = self.data.image_size
        images = _windows(self.images, size)[rows, y, x].view(-1, size, size, 3)
        return DecodedBatch(images, self.labels[rows])


def decode_all(
    source: Source, data: DataConfig
) -> tuple[npt.NDArray[np.uint8], list[tuple[int, str]]]:
    """Every image's central square at image_size, (n, size, size, 3) uint8, and the failures."""
    size = data.image_size
    if isinstance(source, ArraySource) and source.images.shape[1:3] == (size, size):
        return source.images, []
    images = np.empty((len(source), size, size, 3), dtype=np.uint8)

    def decode(i: int) -> str | None:
        try:
            image = source.image(i)
        except UserError as error:
            return str(error)
        sizes = np.asarray([image.size], dtype=np.int64)
        whole = (np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64))
        images[i] = read_box(image, boxes(data, 0, whole, sizes, augment=False)[0], size)
        return None

    with ThreadPoolExecutor() as pool:
        faults = list(pool.map(decode, range(len(source))))
    return images, [(row, fault) for row, fault in enumerate(faults) if fault is not None]


def _windows(images: Tensor, size: int) -> Tensor:
    """Every crop there is: (n, H, W, 3) -> (n, H - size + 1, W - size + 1, size, 3 size), a view.

    images: contiguous. Indexing the first three dimensions copies rows of 3 size contiguous bytes.
    """
    n, height, width, channels = images.shape
    image, row, pixel, _ = images.stride()
    return images.as_strided(
        (n, height - size + 1, width - size + 1, size, channels * size),
        (image, row, pixel, row, 1),
    )
