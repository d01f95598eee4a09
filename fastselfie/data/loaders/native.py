"""Our own loader: crops in the bitstream of a .beton file, decoded by C++ threads."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from fastselfie.data.beton.reader import IMAGE_MODES
from fastselfie.data.dataset import Source
from fastselfie.data.draws import IntArray
from fastselfie.data.loaders.backend import Backend, BackendOptions, flips_of, required_beton
from fastselfie.data.loaders.batch import DecodedBatch, Index
from fastselfie.data.loaders.crops import boxes, shift, wrong_size
from fastselfie.data.loaders.view import View
from fastselfie.kernels.jpeg import KIND_JPEG, KIND_RAW, BatchDecoder

Images = npt.NDArray[np.uint8]

# Batches being decoded beside the one in use: with one, the threads idle while it is fetched.
_AHEAD = 2

# Where the step runs on the same cores, decoding takes what it leaves: the step's threads wait for
# one another, so what one loses to a decoder all lose.
_NICENESS = 10


class _Pending(NamedTuple):
    """A batch that is being decoded: a ticket and an array for each view."""

    tickets: list[int]
    images: list[Images]
    asked: Index
    failures: list[tuple[int, str]]


class NativeBackend(Backend):
    """A thread decodes an image at a time; batches are handed out in order.

    Only the restart intervals that a crop touches are entropy-decoded, and only at the resolution
    that the output needs: see fastselfie.kernels.jpeg.
    """

    takes_several_views = True

    def __init__(self, source: Source, views: Sequence[View], options: BackendOptions) -> None:
        super().__init__(source, views, options)
        self._file = required_beton(source, "native")

    def load(self, plan: Iterator[Index], views: Sequence[View]) -> Generator[DecodedBatch]:
        buffers = _Buffers(pinned=self.device.type == "cuda")
        niceness = _NICENESS if self.device.type == "cpu" else 0
        # What is mirrored in the decoder is not shifted after it: a shift comes before the mirror.
        mirror = self.options.mirror and not any(view.shift for view in views)
        with BatchDecoder(self.options.threads, niceness) as decoder:
            pending: deque[_Pending] = deque()
            for index in plan:
                pending.append(self._submit(decoder, index, views, buffers, mirror))
                if len(pending) > _AHEAD:
                    yield self._finish_one(decoder, pending.popleft(), views, mirror)
            while pending:
                yield self._finish_one(decoder, pending.popleft(), views, mirror)

    def _submit(
        self,
        decoder: BatchDecoder,
        index: Index,
        views: Sequence[View],
        buffers: _Buffers,
        mirror: bool,
    ) -> _Pending:
        reader, samples = self._file.reader, self._file.indices[index.samples]
        width, height = reader.width[samples], reader.height[samples]
        sizes = np.stack([width, height], axis=1).astype(np.int64)
        shapes = np.stack([height, width], axis=1).astype(np.int32)
        raw = reader.mode[samples] == IMAGE_MODES["raw"]
        kinds = np.where(raw, KIND_RAW, KIND_JPEG).astype(np.uint8)
        tickets, made = [], []
        for number, view in enumerate(views):
            images = buffers.take(len(samples), view.size)
            flips = flips_of(view, number, self.seed, index) if mirror else None
            tickets.append(
                decoder.submit(
                    reader.data.data,
                    boxes(view, number, self.seed, index, sizes).astype(np.int32),
                    None if flips is None else flips.astype(np.uint8),
                    out=images,
                    offsets=reader.offset[samples],
                    sizes=reader.size[samples],
                    kinds=kinds,
                    shapes=shapes,
                )
            )
            made.append(images)
        return _Pending(tickets, made, index, self._wrong_sizes(index, views, sizes))

    def _finish_one(
        self, decoder: BatchDecoder, batch: _Pending, views: Sequence[View], mirror: bool
    ) -> DecodedBatch:
        name, samples = self.source.name, batch.asked.samples
        failed = dict(batch.failures)
        for ticket in batch.tickets:
            for row, why in decoder.wait(ticket):
                failed.setdefault(row, f"{name(int(samples[row]))}: {why}")
        for number, (view, images) in enumerate(zip(views, batch.images, strict=True)):
            shift(images, view, number, self.seed, batch.asked)
        labels = torch.from_numpy(self.source.labels[samples])
        tensors = [torch.from_numpy(each) for each in batch.images]
        return DecodedBatch(tensors, labels, sorted(failed.items()), flipped=mirror)

    def _wrong_sizes(
        self, index: Index, views: Sequence[View], sizes: IntArray
    ) -> list[tuple[int, str]]:
        """Images that a view with crop `none` cannot take."""
        wrong = {
            row: wrong_size(view, sizes[row], self.source.name(int(index.samples[row])))
            for view in views
            if view.crop == "none"
            for row in np.flatnonzero((sizes != view.size).any(axis=1)).tolist()
        }
        return sorted(wrong.items())


class _Buffers:
    """Arrays for batches, used again once nobody holds one or a tensor over it.

    Fresh memory for each batch costs a page fault every 4 KB, a tenth of the decoding. For a GPU
    they are pinned; torch's allocator keeps those, and knows which a copy still reads.
    """

    def __init__(self, pinned: bool) -> None:
        self.pinned = pinned
        self.arrays: list[Images] = []

    def take(self, count: int, size: int) -> Images:
        shape = (count, size, size, 3)
        if self.pinned:
            pinned: Images = torch.empty(shape, dtype=torch.uint8, pin_memory=True).numpy()
            return pinned
        for i in range(len(self.arrays)):
            # Two holders are the list and the argument of getrefcount itself.
            if sys.getrefcount(self.arrays[i]) == 2 and self.arrays[i].shape == shape:
                return self.arrays[i]
        self.arrays.append(np.empty(shape, dtype=np.uint8))
        return self.arrays[-1]
