"""What every loader shares: the order of samples, the batch, and how a pass begins and ends.

A loader only turns an index batch into pixels; which samples come when, how they are flipped and
which patches are masked is decided here, once, from counter-based draws.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from fastselfie.config import DataConfig
from fastselfie.data import random as rng
from fastselfie.data.dataset import BetonSource, Source
from fastselfie.data.random import IntArray
from fastselfie.errors import UserError
from fastselfie.system.accelerator import usable_cores
from fastselfie.system.distributed import ALONE, Ranks
from fastselfie.system.trace_ranges import trace_range


class DecodedBatch(NamedTuple):
    """What a loader makes of an index: images (B, H, W, 3) uint8, labels (B,) int64.

    failures: rows that could not be decoded, with a line that names the image and the reason.
    flipped: the images of an augmented batch are mirrored already, where they are drawn to be.
    """

    images: Tensor
    labels: Tensor
    failures: Sequence[tuple[int, str]] = ()
    flipped: bool = False


class Index(NamedTuple):
    """Which samples make a batch: ids (B,) int64, and the epoch (B,) int64 that each is drawn in.

    A batch may cross the end of an epoch, so the epoch belongs to the sample too.
    """

    samples: IntArray
    epochs: IntArray


@dataclass(frozen=True)
class Batch:
    """images (B, H, W, 3) uint8, labels (B,), flip (B,) bool, order (B, N): visible, then masked.

    index: which samples they are.
    """

    images: Tensor
    labels: Tensor
    flip: Tensor
    order: Tensor
    index: Index

    def hand_over(self, stream: torch.cuda.Stream) -> None:
        """Let the current stream use what `stream` makes.

        The host runs ahead of the step, so this batch travels while the one before it trains.
        """
        current = torch.cuda.current_stream(stream.device)
        current.wait_stream(stream)
        for tensor in (self.images, self.labels, self.flip, self.order):
            tensor.record_stream(current)  # its memory stays until the step is done with it

    def shrunk(self, side: int | None) -> Batch:
        """The same samples, `side` pixels wide and high; None: as they are.

        The antialiased bilinear filter is the loaders' own. In parts: floats take four times the
        memory.
        """
        if side is None:
            return self
        with trace_range("patchify"):
            parts = [_shrink(images, side) for images in torch.split(self.images, 64)]
            return replace(self, images=torch.cat(parts).contiguous())

    def split(self, size: int) -> Iterator[Batch]:
        """Micro-batches of `size` images, views of this one."""
        for start in range(0, len(self.images), size):
            part = slice(start, start + size)
            index = Index(self.index.samples[part], self.index.epochs[part])
            yield Batch(
                self.images[part], self.labels[part], self.flip[part], self.order[part], index
            )


def _shrink(images: Tensor, side: int) -> Tensor:
    pixels = images.permute(0, 3, 1, 2).float()
    small = F.interpolate(pixels, size=(side, side), mode="bilinear", antialias=True)
    return small.round().to(torch.uint8).permute(0, 2, 3, 1)


def decoder_count(data: DataConfig) -> int:
    """Threads that decode, at least one: data.workers, or one for each core we may use."""
    return max(1, usable_cores() if data.workers is None else data.workers)


def required_beton(source: Source, loader: str) -> BetonSource:
    """`source`, which `loader` can only read from a .beton file.

    Raises:
        UserError: it is of another kind.
    """
    if isinstance(source, BetonSource):
        return source
    raise UserError(
        f"data.loader is {loader}, which reads a .beton file: make one with `fastselfie prepare "
        "DIR --out FILE.beton` and give data.train=FILE.beton"
    )


class SampleStream:
    """The endless concatenation of shuffled epochs.

    Position p is sample p mod n of epoch p // n, so the whole state of a loader is one number:
    how many samples were consumed. It depends on neither batch size nor process count.
    """

    def __init__(self, count: int, seed: int) -> None:
        self.count = count
        self.seed = seed
        self._orders: dict[int, IntArray] = {}

    def take(self, start: int, size: int) -> Index:
        """The samples at positions [start, start + size)."""
        positions = np.arange(start, start + size, dtype=np.int64)
        epochs, offsets = positions // self.count, positions % self.count
        samples = np.empty_like(positions)
        for epoch in np.unique(epochs):
            inside = epochs == epoch
            samples[inside] = self._order(int(epoch))[offsets[inside]]
        return Index(samples, epochs)

    def _order(self, epoch: int) -> IntArray:
        if epoch not in self._orders:
            # Positions only grow, so the epoch before is all that can still be asked for.
            self._orders = {e: o for e, o in self._orders.items() if e == epoch - 1}
            self._orders[epoch] = rng.epoch_order(self.seed, epoch, self.count)
        return self._orders[epoch]


class Loader(ABC):
    """Batches of augmented training images, or of evaluation images in order.

    patches: N, for the order of each image's patches; 1 for whole images, which have none.
    repeats: whether the same samples come with the same pixels again, as a resumed run needs.
    """

    repeats = True

    def __init__(self, count: int, data: DataConfig, seed: int, device: torch.device) -> None:
        self.count = count
        self.data = data
        self.seed = seed
        self.device = device
        self.skipped = 0  # images that on_error: skip replaced since the loader was made
        self._in_a_row: list[str] = []  # what was said of those that failed one after the other

    def __len__(self) -> int:
        """Images in an epoch."""
        return self.count

    @abstractmethod
    def load(self, plan: Iterator[Index], augment: bool) -> Generator[DecodedBatch]:
        """Images (B, H, W, 3) uint8 and labels (B,) int64 for each index, in order.

        No index of a plan is longer than its first: a loader may size its buffers by that one.
        Images are cropped; a loader need not flip them, as patchify does that on its way. Closing
        the iterator frees what it holds.

        What cannot be decoded is among the failures, its pixels anything.
        """

    def train(
        self,
        consumed: int,
        batch_size: int,
        patches: int = 1,
        ranks: Ranks = ALONE,
    ) -> Generator[Batch]:
        """Endless augmented batches, from the sample at position `consumed` on.

        batch_size: over all `ranks`, each of which gets its own equal part of every batch.
        """
        stream = SampleStream(self.count, self.seed)
        share = batch_size // ranks.world

        def plan() -> Iterator[Index]:
            position = consumed + ranks.rank * share
            while True:
                yield stream.take(position, share)
                position += batch_size

        return self._batches(plan, augment=True, patches=patches)

    def evaluate(
        self,
        batch_size: int,
        patches: int = 1,
        limit: int | None = None,
        ranks: Ranks = ALONE,
        augment: bool = False,
    ) -> Generator[Batch]:
        """`limit` images once, in order, as they are; the last batch may be smaller.

        augment: instead with the crops and flips that they would have in the first epoch.

        They are spread evenly over the set, which is often sorted by class. Of these batches each
        of the `ranks` gets every world-th, so they are the same batches on any number of processes.
        """
        count = min(self.count, limit or self.count)

        def plan() -> Iterator[Index]:
            for start in range(ranks.rank * batch_size, count, ranks.world * batch_size):
                numbers = np.arange(start, min(start + batch_size, count), dtype=np.int64)
                yield Index(numbers * self.count // count, np.zeros_like(numbers))

        return self._batches(plan, augment=augment, patches=patches)

    def _batches(
        self, plan: Callable[[], Iterator[Index]], *, augment: bool, patches: int
    ) -> Generator[Batch]:
        # The plan is walked twice: a loader reads ahead of what is delivered.
        stream: torch.cuda.Stream | None = None
        if self.device.type == "cuda":
            stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        with closing(self.load(plan(), augment)) as loaded:
            pairs = zip(loaded, plan(), strict=False)
            while True:
                with torch.cuda.stream(stream):  # does nothing where it is None
                    pixels, index = next(pairs, (None, None))
                    if pixels is None or index is None:
                        return
                    flips = augment and not pixels.flipped
                    batch = self._finish(*self._without_failures(pixels, index), flips, patches)
                if stream is not None:
                    batch.hand_over(stream)
                yield batch

    def _without_failures(self, pixels: DecodedBatch, index: Index) -> tuple[Tensor, Tensor, Index]:
        """Under on_error: skip, a failed row becomes a copy of the next good one of its batch.

        The batch keeps its size, which compiled steps and other processes count on.
        """
        images, labels, failures, _ = pixels
        if not failures:
            self._in_a_row.clear()
            return images, labels, index
        rows = self._stand_ins(len(images), failures)
        taken = torch.from_numpy(rows).to(images.device)
        return images[taken], labels[taken], Index(index.samples[rows], index.epochs[rows])

    def _stand_ins(self, count: int, failures: Sequence[tuple[int, str]]) -> IntArray:
        """(count,) rows: each its own, a failed one the next good one's. Counts them.

        Raises:
            UserError: the first failure, under on_error: raise, where nothing is good, or of more
                than data.max_skipped_in_a_row.
        """
        rows = np.arange(count, dtype=np.int64)
        failed = np.asarray([row for row, _ in failures], dtype=np.int64)
        if failures and (self.data.on_error == "raise" or len(failed) == count):
            raise UserError(failures[0][1])
        self._count_in_a_row(count, dict(failures))
        good = np.setdiff1d(rows, failed)
        rows[failed] = good[np.searchsorted(good, failed) % len(good)]
        self.skipped += len(failed)
        return rows

    def _count_in_a_row(self, count: int, failures: Mapping[int, str]) -> None:
        """Refuse a row of failures that is too long, over the ends of batches too."""
        limit = self.data.max_skipped_in_a_row
        for row in range(count):
            if row not in failures:
                self._in_a_row.clear()
                continue
            self._in_a_row.append(failures[row])
            if len(self._in_a_row) == limit:
                raise UserError(
                    f"{self._in_a_row[0]}: the first of {limit} images in a row that cannot be "
                    "decoded: see to the disk, or raise data.max_skipped_in_a_row"
                )

    def again(self, index: Index, patches: int = 1) -> Batch:
        """The augmented batch of `index`, as `train` made it when it came to those samples."""
        with closing(self._batches(lambda: iter([index]), augment=True, patches=patches)) as found:
            return next(found)

    def _finish(
        self, images: Tensor, labels: Tensor, index: Index, flips: bool, patches: int
    ) -> Batch:
        samples, epochs = index
        flip = self._flips(index, flips)
        if patches > 1:
            order = rng.patch_orders(self.seed, epochs, samples, patches)
        else:
            order = np.zeros((len(samples), 1), dtype=np.int64)
        return Batch(
            self._send(images),
            self._send(labels),
            self._send(torch.from_numpy(flip)),
            self._send(torch.from_numpy(order)),
            index,
        )

    def _flips(self, index: Index, augment: bool) -> npt.NDArray[np.bool_]:
        """Which images are drawn to be mirrored: (B,) bool."""
        if augment and self.data.flip:
            return rng.flips(self.seed, index.epochs, index.samples)
        return np.zeros(len(index.samples), dtype=np.bool_)

    def _send(self, tensor: Tensor) -> Tensor:
        if self.device.type == "cuda" and tensor.device.type == "cpu":
            with trace_range("copy"):
                # Does nothing to what a loader has put into pinned memory already.
                return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor
