"""A small set whole on the device: augmentation is one gather there, without workers."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastselfie import rng
from fastselfie.config import DataConfig
from fastselfie.data.loaders.base import Index, Loader, Pixels
from fastselfie.data.loaders.geometry import boxes, padded, read_box, shift_of
from fastselfie.data.sources import ArraySource, Source
from fastselfie.errors import UserError


class ResidentLoader(Loader):
    """Decodes and pads every image once; a batch is a gather over sliding windows."""

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
        self.windows = _windows(torch.from_numpy(whole).to(device), data.image_size)

    def load(self, plan: Iterator[Index], augment: bool) -> Generator[Pixels]:
        for samples, epochs in plan:
            offsets = np.full((len(samples), 2), self.pad, dtype=np.int64)
            if augment and self.pad:
                offsets = rng.shifts(self.seed, epochs, samples, self.pad)
            rows = self._send(torch.from_numpy(samples))
            size = self.data.image_size
            if self.device.type == "cpu":
                # numpy copies whole rows of pixels, torch byte by byte: five times as long.
                y, x = offsets.T
                images = torch.from_numpy(self.windows.numpy()[samples, y, x])
            else:
                places = self._send(torch.from_numpy(offsets))
                images = self.windows[rows, places[:, 0], places[:, 1]]
            images = images.view(len(samples), size, size, 3)
            yield Pixels(images, self.labels[rows])


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
    """(n, H, W, 3) -> (n, H - size + 1, W - size + 1, size, 3 size), a view: every crop there is.

    Indexing the first three dimensions copies rows of 3 size contiguous bytes.
    """
    n, height, width, channels = images.shape
    image, row, pixel, _ = images.contiguous().stride()
    return images.as_strided(
        (n, height - size + 1, width - size + 1, size, channels * size),
        (image, row, pixel, row, 1),
    )
