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
from fastselfie.data.loaders.backend import Backend, BackendOptions, flips_of, required_beton
from fastselfie.data.loaders.batch import DecodedBatch, Index
from fastselfie.data.loaders.crops import boxes, wrong_size
from fastselfie.data.loaders.to_device import host_memory
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
    failures: dict[int, str]


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
        buffers = _Buffers(self.device)
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
        stored = reader.decoder_input(samples)
        tickets, made = [], []
        failures: dict[int, str] = {}
        for number, view in enumerate(views):
            images = buffers.take(len(samples), view.size)
            flips = flips_of(view, number, self.seed, index) if mirror else None
            tickets.append(
                decoder.submit(
                    boxes=boxes(view, number, self.seed, index, sizes).astype(np.int32),
                    flips=None if flips is None else flips.astype(np.uint8),
                    out=images,
                    kinds=kinds,
                    shapes=shapes,
                    **stored,
                )
            )
            made.append(images)
            for row, size in enumerate(sizes) if view.crop == "none" else ():
                if wrong := wrong_size(view, size, self.source.name(int(index.samples[row]))):
                    failures[row] = wrong
        return _Pending(tickets, made, index, failures)

    def _finish_one(
        self, decoder: BatchDecoder, batch: _Pending, views: Sequence[View], mirror: bool
    ) -> DecodedBatch:
        failed = dict(batch.failures)
        for ticket in batch.tickets:
            for row, why in decoder.wait(ticket):
                name = self.source.name(int(batch.asked.samples[row]))
                failed.setdefault(row, f"{name}: {why}")
        return self.batch(batch.asked, batch.images, views, sorted(failed.items()), mirror)


class _Buffers:
    """Arrays for batches, used again once nobody holds one or a tensor over it.

    Fresh memory for each batch costs a page fault every 4 KB, a tenth of the decoding. For a GPU
    they are pinned; torch's allocator keeps those, and knows which a copy still reads.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.arrays: list[Images] = []

    def take(self, count: int, size: int) -> Images:
        shape = (count, size, size, 3)
        if self.device.type == "cuda":
            return host_memory(shape, self.device)
        for i in range(len(self.arrays)):
            # Two holders are the list and the argument of getrefcount itself.
            if sys.getrefcount(self.arrays[i]) == 2 and self.arrays[i].shape == shape:
                return self.arrays[i]
        self.arrays.append(np.empty(shape, dtype=np.uint8))
        return self.arrays[-1]
