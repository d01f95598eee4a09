"""A small set whole on the device: augmentation is one gather there, without workers."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastselfie.data import draws
from fastselfie.data.dataset import ArraySource, Source
from fastselfie.data.draws import IntArray
from fastselfie.data.loaders.backend import Backend, BackendOptions, flips_of
from fastselfie.data.loaders.batch import DecodedBatch, Index
from fastselfie.data.loaders.crops import padded, read_image
from fastselfie.data.loaders.failures import Failures
from fastselfie.data.loaders.to_device import to_device
from fastselfie.data.loaders.view import View
from fastselfie.errors import UserError
from fastselfie.kernels.host import gather_crops


class ResidentBackend(Backend):
    """Decodes and pads every image once; a batch is a gather of crops.

    On the host the gather is C++, and mirrors on its way; on a GPU patchify does that.

    Raises:
        ValueError: The crop is not `pad`.
    """

    def __init__(self, source: Source, views: Sequence[View], options: BackendOptions) -> None:
        super().__init__(source, views, options)
        (view,) = views
        if view.crop != "pad":
            raise ValueError(f"backend is resident, which takes crop pad, and crop is {view.crop}")
        self.size, self.pad = view.size, view.shift
        images, failures = decode_all(source, view)
        labels = source.labels
        rows = options.failures.rows(len(source), failures)
        if rows is not None:
            if len(rows) == 0:
                raise UserError(f"{failures[0][1]} (as all {len(source):,} images of the set)")
            images, labels = images[rows], labels[rows]
        self.labels = torch.from_numpy(labels).to(self.device)
        whole = padded(images, self.pad, view.pad_mode) if self.pad else images
        self.images = torch.from_numpy(np.ascontiguousarray(whole)).to(self.device)

    def load(self, plan: Iterator[Index], views: Sequence[View]) -> Generator[DecodedBatch]:
        (view,) = views
        gather = self._gather_on_host if self.device.type == "cpu" else self._gather_on_device
        for index in plan:
            offsets = np.full((len(index.samples), 2), self.pad, dtype=np.int64)
            if view.shift:
                offsets = draws.shifts(self.seed, index.epochs, index.samples, self.pad)
            yield gather(index, offsets, view)

    def _gather_on_host(self, index: Index, offsets: IntArray, view: View) -> DecodedBatch:
        images = np.empty((len(index.samples), self.size, self.size, 3), dtype=np.uint8)
        flips = flips_of(view, 0, self.seed, index)
        gather_crops(self.images.numpy(), index.samples, offsets, flips, images)
        labels = self.labels[torch.from_numpy(index.samples)]
        return DecodedBatch([torch.from_numpy(images)], labels, flipped=True)

    def _gather_on_device(self, index: Index, offsets: IntArray, view: View) -> DecodedBatch:
        del view  # its flips are done later
        rows = to_device(torch.from_numpy(index.samples), self.device)
        y, x = to_device(torch.from_numpy(offsets), self.device).unbind(1)
        images = _windows(self.images, self.size)[rows, y, x].view(-1, self.size, self.size, 3)
        return DecodedBatch([images], self.labels[rows])


def decode_all(source: Source, view: View) -> tuple[npt.NDArray[np.uint8], Failures]:
    """Every image's central square, (n, size, size, 3) uint8, and the failures."""
    size = view.size
    if isinstance(source, ArraySource) and source.images.shape[1:3] == (size, size):
        return source.images, []
    images = np.empty((len(source), size, size, 3), dtype=np.uint8)

    def decode(row: int) -> str | None:
        return read_image(source, row, 0, [view], 0, [images[row]])

    with ThreadPoolExecutor() as pool:
        found = enumerate(pool.map(decode, range(len(source))))
        return images, [(row, failure) for row, failure in found if failure]


def _windows(images: Tensor, size: int) -> Tensor:
    """Every crop there is: (n, H, W, 3) -> (n, H - size + 1, W - size + 1, size, 3 size), a view.

    images: contiguous. Indexing the first three dimensions copies rows of 3 size contiguous bytes.
    """
    n, height, width, channels = images.shape
    image, row, pixel, _ = images.stride()
    return images.as_strided(
        (n, height - size + 1, width - size + 1, size, channels * size), (image, row, pixel, row, 1)
    )
