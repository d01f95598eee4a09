"""Which samples come next: endless training streams, epochs, and held-out images in order."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fastselfie.data import draws
from fastselfie.data.draws import IntArray
from fastselfie.data.loaders.batch import Index
from fastselfie.system.distributed import Ranks


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

    def batches(self, start: int, batch_size: int, ranks: Ranks) -> Iterator[Index]:
        """Endless batches from position `start` on, of each the equal part of this rank.

        batch_size: over all ranks.
        """
        share = batch_size // ranks.world
        position = start + ranks.rank * share
        while True:
            yield self.take(position, share)
            position += batch_size

    def _order(self, epoch: int) -> IntArray:
        if epoch not in self._orders:
            # Positions only grow, so the epoch before is all that can still be asked for.
            self._orders = {e: o for e, o in self._orders.items() if e == epoch - 1}
            self._orders[epoch] = draws.epoch_order(self.seed, epoch, self.count)
        return self._orders[epoch]


def in_order(count: int, batch_size: int, limit: int | None, ranks: Ranks) -> Iterator[Index]:
    """`limit` of `count` samples once, in order, every world-th batch of them for this rank.

    They are spread evenly over the set, which is often sorted by class. The batches are the same
    on any number of processes.
    """
    wanted = min(count, limit or count)
    for start in range(ranks.rank * batch_size, wanted, ranks.world * batch_size):
        numbers = np.arange(start, min(start + batch_size, wanted), dtype=np.int64)
        yield Index(numbers * count // wanted, np.zeros_like(numbers))


def one_epoch(
    order: IntArray, epoch: int, start: int, batch_size: int, drop_last: bool, ranks: Ranks
) -> Iterator[Index]:
    """The rest of an epoch from position `start` on, of each batch the part of this rank.

    The last batch may be smaller; every rank has as many images in it, for which the epoch's first
    images stand in where they do not divide.

    batch_size: of this rank.
    """
    whole = batch_size * ranks.world
    for position in range(start, len(order), whole):
        part = order[position : position + whole]
        if len(part) < whole:
            if drop_last:
                return
            missing = -len(part) % ranks.world
            part = np.concatenate([part, np.resize(order, missing)])
        share = len(part) // ranks.world
        mine = part[ranks.rank * share : (ranks.rank + 1) * share]
        yield Index(mine, np.full(share, epoch, dtype=np.int64))
