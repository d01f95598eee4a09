"""Our own loader: crops in the bitstream of a .beton file, decoded by C++ threads."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Generator, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from fastselfie.config import DataConfig
from fastselfie.data.beton.reader import IMAGE_MODES
from fastselfie.data.dataset import Source
from fastselfie.data.loaders.base import DecodedBatch, Index, Loader, decoder_count, required_beton
from fastselfie.data.loaders.crops import boxes, shift
from fastselfie.kernels.jpeg import KIND_JPEG, KIND_RAW, BatchDecoder

Images = npt.NDArray[np.uint8]

# Batches being decoded beside the one in use: with one, the threads idle while it is fetched.
_AHEAD = 2

# Where the step runs on the same cores, decoding takes what it leaves: the step's threads wait for
# one another, so what one loses to a decoder all lose.
_NICENESS = 10


class _Pending(NamedTuple):
    ticket: int
    images: Images
    asked: Index


class NativeLoader(Loader):
    """A thread decodes an image at a time; batches are handed out in order.

    Only the restart intervals that a crop touches are entropy-decoded, and only at the resolution
    that the output needs: see fastselfie.kernels.jpeg.
    """

    def __init__(self, source: Source, data: DataConfig, seed: int, device: torch.device) -> None:
        super().__init__(len(source), data, seed, device)
        self.source = required_beton(source, "native")
        self.threads = decoder_count(data)

    def load(self, plan: Iterator[Index], augment: bool) -> Generator[DecodedBatch]:
        buffers = _Buffers(self.data.image_size, pinned=self.device.type == "cuda")
        niceness = _NICENESS if self.device.type == "cpu" else 0
        with BatchDecoder(self.threads, niceness) as decoder:
            pending: deque[_Pending] = deque()
            for index in plan:
                images = buffers.take(len(index.samples))
                ticket = self._submit(decoder, index, augment, images)
                pending.append(_Pending(ticket, images, index))
                del images  # the buffers count who holds one
                if len(pending) > _AHEAD:
                    yield self._finish_one(decoder, pending.popleft(), augment)
            while pending:
                yield self._finish_one(decoder, pending.popleft(), augment)

    def _submit(self, decoder: BatchDecoder, index: Index, augment: bool, images: Images) -> int:
        reader, samples = self.source.reader, self.source.indices[index.samples]
        width, height = reader.width[samples], reader.height[samples]
        sizes = np.stack([width, height], axis=1).astype(np.int64)
        raw = reader.mode[samples] == IMAGE_MODES["raw"]
        return decoder.submit(
            reader.data.data,
            boxes(self.data, self.seed, index, sizes, augment).astype(np.int32),
            out=images,
            offsets=reader.offset[samples],
            sizes=reader.size[samples],
            kinds=np.where(raw, KIND_RAW, KIND_JPEG).astype(np.uint8),
            shapes=np.stack([height, width], axis=1).astype(np.int32),
        )

    def _finish_one(self, decoder: BatchDecoder, batch: _Pending, augment: bool) -> DecodedBatch:
        found = decoder.wait(batch.ticket)
        name = self.source.name
        failures = [(row, f"{name(int(batch.asked.samples[row]))}: {why}") for row, why in found]
        if augment:
            shift(batch.images, self.data, self.seed, batch.asked)
        labels = torch.from_numpy(self.source.labels[batch.asked.samples])
        return DecodedBatch(torch.from_numpy(batch.images), labels, failures)


class _Buffers:
    """Arrays for batches, used again once nobody holds one or a tensor over it.

    Fresh memory for each batch costs a page fault every 4 KB, a tenth of the decoding. For a GPU
    they are pinned; torch's allocator keeps those, and knows which a copy still reads.
    """

    def __init__(self, size: int, pinned: bool) -> None:
        self.size = size
        self.pinned = pinned
        self.arrays: list[Images] = []

    def take(self, count: int) -> Images:
        shape = (count, self.size, self.size, 3)
        if self.pinned:
            pinned: Images = torch.empty(shape, dtype=torch.uint8, pin_memory=True).numpy()
            return pinned
        for i in range(len(self.arrays)):
            # Two holders are the list and the argument of getrefcount itself.
            if sys.getrefcount(self.arrays[i]) == 2 and self.arrays[i].shape == shape:
                return self.arrays[i]
        self.arrays.append(np.empty(shape, dtype=np.uint8))
        return self.arrays[-1]
