"""The loader: batches of any set of images, for a training loop of your own and for ours."""

from __future__ import annotations

import os
import weakref
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fastselfie.data import draws
from fastselfie.data.dataset import Source
from fastselfie.data.loaders.arguments import (
    expanded_views,
    normalization,
    opened_source,
    ranks_of_group,
    usable_device,
)
from fastselfie.data.loaders.batch import Batch, Index
from fastselfie.data.loaders.checks import require_whole
from fastselfie.data.loaders.crops import mirrored
from fastselfie.data.loaders.epoch_iterator import EpochIterator
from fastselfie.data.loaders.failures import FailurePolicy
from fastselfie.data.loaders.sampling import one_epoch
from fastselfie.data.loaders.streams import BatchStreams
from fastselfie.data.loaders.view import Crop, PadMode, View
from fastselfie.kernels.patchify import patchify

Images = Any  # a Tensor or, where views were given, a list of Tensors
_STATE_VERSION = 1


class Loader(BatchStreams):
    """Batches of (images, labels), shuffled and augmented, epoch after epoch.

    Every random draw belongs to (seed, epoch, sample). So a batch is the same for any number of
    workers and after a resume, and ranks see disjoint parts of the same epoch.

    Args:
        data: The path of a dataset (image folder, .beton, .tar, .parquet, CIFAR, IDX, ...); several
            .beton files, as a folder, a pattern (train-*.beton) or a list; or a part of what
            `open_dataset` returns.
        batch_size: Images in a batch of this process.
        size, crop, area, ratio, pad, pad_mode, flip: The one view of each image; see `View`.
        views: Several views of each image instead, for one read of it. Each batch is then
            ([images of view 1, images of view 2, ...], labels), a view with count n n times.
        part: The part of `data` to read where it has parts: train, test or val.
        shuffle: Whether each epoch has an order of its own; else the order of the set.
        drop_last: Whether to leave out a last batch that is smaller.
        dtype: uint8: 0 to 255. float32, bfloat16 or float16: 0 to 1, or normalized.
        mean, std: Three numbers each, in units of 0 to 1, to normalize with. Not for uint8.
        seed: Of all random draws, below 2^32.
        device: Where the batches are. On a GPU a batch is copied while the one before it is used.
        rank, world_size: This process among those that share each epoch; None: as
            torch.distributed says, or 0 of 1.
        workers: Decoding threads or processes; None: one a core.
        on_error: What an image that cannot be decoded does: `raise` stops with its name, `skip`
            puts another image in its place, one of the batch or, where all of it are bad, one of
            those that follow in the set.
        max_skipped_in_a_row: With `skip`, stop at so many failures one after another.
        backend: auto, native, folder, resident, synthetic, ffcv or dali.

    Attributes:
        classes: Names of the classes, in the order of the labels.
        skipped: How many bad images `skip` has met.

    Raises:
        UserError: `data` is not there or cannot be read, or an image cannot be decoded.
        ValueError, TypeError: An argument is not as described here.

    Example:
        >>> loader = Loader("train.beton", batch_size=256, size=224)
        >>> for epoch in range(loader.epoch, 90):
        ...     for images, labels in loader:  # (256, 3, 224, 224) uint8, channels-last; (256,)
        ...         ...
    """

    def __init__(
        self,
        data: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Source,
        batch_size: int,
        *,
        size: int = 224,
        crop: Crop = "random_resized",
        area: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        pad: int = 4,
        pad_mode: PadMode = "zero",
        flip: bool | None = None,
        views: Sequence[View] | None = None,
        part: str = "train",
        shuffle: bool = True,
        drop_last: bool = False,
        dtype: torch.dtype = torch.uint8,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        seed: int = 0,
        device: str | torch.device = "cpu",
        rank: int | None = None,
        world_size: int | None = None,
        workers: int | None = None,
        on_error: Literal["raise", "skip"] = "raise",
        max_skipped_in_a_row: int = 100,
        backend: str = "auto",
    ) -> None:
        batch_size = require_whole("batch_size", batch_size, 1)
        seed = require_whole("seed", seed, 0, 2**32 - 1)
        workers = None if workers is None else require_whole("workers", workers, 0, 1024)
        device = usable_device(device)
        one = View(size, crop, area, ratio, pad, pad_mode, flip)
        self._several = views is not None
        self._ranks = ranks_of_group(rank, world_size)
        self._asks_torch = rank is None
        self.batch_size, self.shuffle, self.drop_last = batch_size, shuffle, drop_last
        self._normalization = normalization(dtype, mean, std, device)
        self._dtype = dtype
        super().__init__(
            opened_source(data, part),
            expanded_views(one, views),
            seed,
            device,
            workers,
            FailurePolicy(on_error, max_skipped_in_a_row),
            backend,
            mirror=dtype == torch.uint8,
        )
        if len(self) == 0:
            raise ValueError(
                f"drop_last leaves no batch: {len(self.source)} images are fewer than batch_size "
                f"{batch_size} on {self._ranks.world} ranks"
            )
        self._next = self._position = (0, 0)  # (epoch, samples of it that are done)
        self._running: weakref.ref[EpochIterator] | None = None
        self._process = os.getpid()
        self._closed = False

    # For a training loop: epochs.

    def __iter__(self) -> Iterator[tuple[Images, Tensor]]:
        """Begin the next epoch, or go on in the one that `load_state_dict` named.

        An epoch that another iterator has not finished ends.

        Raises:
            RuntimeError: The loader is closed, belongs to another process, or was made before
                torch.distributed was initialized.
        """
        self.require_usable()
        if self._asks_torch and ranks_of_group(None, None) != self._ranks:
            raise RuntimeError(
                "this Loader was made before torch.distributed was initialized: make it after, or "
                "pass rank and world_size"
            )
        self._stop()
        epoch, start = self._next
        self._next, self._position = (epoch + 1, 0), (epoch, start)
        running = EpochIterator(self.require_usable, self._run_epoch(epoch, start))
        self._running = weakref.ref(running)
        return running

    def __len__(self) -> int:
        """Batches in an epoch, of this process."""
        count, whole = len(self.source), self._whole_batch
        return count // whole if self.drop_last else -(-count // whole)

    @property
    def _whole_batch(self) -> int:
        """Images in a batch of all ranks."""
        return self.batch_size * self._ranks.world

    @property
    def epoch(self) -> int:
        """The epoch that the next `iter()` begins or goes on with."""
        return self._next[0]

    def set_epoch(self, epoch: int) -> None:
        """Let the next `iter()` begin `epoch`.

        Where `load_state_dict` has named a place in that same epoch, the place stays.
        """
        epoch = require_whole("epoch", epoch, 0)
        if epoch != self._next[0]:
            self._next = (epoch, 0)
        if self._running is None or self._running() is None:
            self._position = self._next

    def state_dict(self) -> dict[str, Any]:
        """Where the loader is: after the batch that was handed out last.

        The protocol is that of torchdata's StatefulDataLoader.
        """
        epoch, samples = self._position
        return {
            "version": _STATE_VERSION,
            "epoch": epoch,
            "samples": samples,
            "seed": self.seed,
            "images": len(self.source),
            "shuffle": self.shuffle,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next `iter()` go on where `state_dict` was called.

        The batch size and the number of ranks may be others than then.

        Raises:
            ValueError: The state is of another seed, set of images, order or version.
        """
        self._stop()
        mine = self.state_dict()
        for key in ("version", "seed", "images", "shuffle"):
            if state.get(key) != mine[key]:
                raise ValueError(
                    f"state has {key} = {state.get(key)!r}, this loader {mine[key]!r}: make the "
                    "loader as the one was that gave the state"
                )
        epoch = require_whole("state's epoch", state.get("epoch", -1), 0)
        samples = require_whole("state's samples", state.get("samples", -1), 0, len(self.source))
        self._next = self._position = self._place(epoch, samples)

    def _place(self, epoch: int, samples: int) -> tuple[int, int]:
        """Where the next batch begins after `samples` of an epoch: in the next one at its end."""
        least = self._whole_batch if self.drop_last else 1
        return (epoch, samples) if len(self.source) - samples >= least else (epoch + 1, 0)

    def close(self) -> None:
        """End all threads and processes. It may be called twice."""
        self._closed = True
        self._stop()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in the order of the labels."""
        return list(self.source.classes)

    def _run_epoch(self, epoch: int, start: int) -> Generator[tuple[Images, Tensor]]:
        count = len(self.source)
        order = draws.epoch_order(self.seed, epoch, count) if self.shuffle else np.arange(count)

        def plan() -> Iterator[Index]:
            return one_epoch(order, epoch, start, self.batch_size, self.drop_last, self._ranks)

        done = start
        with closing(self._batches(plan, self._views)) as batches:
            for batch in batches:
                done += self._whole_batch
                self._position = self._place(epoch, done)
                images = [self._finish_view(batch, number) for number in range(len(self._views))]
                yield (images if self._several else images[0]), batch.labels

    def _finish_view(self, batch: Batch, number: int) -> Tensor:
        """(B, 3, H, W) in the dtype that was asked for, channels-last."""
        images, flip = batch.views[number], batch.flips[number]
        if self._normalization is None:
            return mirrored(images, flip).permute(0, 3, 1, 2)
        order = torch.zeros(len(images), 1, dtype=torch.int64, device=images.device)
        side = images.shape[1]
        return patchify(images, flip, order, side, *self._normalization, self._dtype)[:, 0]

    def require_usable(self) -> None:
        """Refuse to hand out batches where there are no threads to make them.

        Raises:
            RuntimeError: The loader is closed, or belongs to another process.
        """
        if self._closed:
            raise RuntimeError("this Loader is closed: make a new one")
        if os.getpid() != self._process:
            raise RuntimeError(
                "this Loader belongs to the process that made it, and threads do not survive a "
                "fork: make a Loader in each process"
            )

    def _stop(self) -> None:
        """End the epoch that is running, if there is one."""
        running = None if self._running is None else self._running()
        if running is not None and os.getpid() == self._process:
            running.end()
        self._running = None

    def __reduce__(self) -> str:
        raise TypeError("a Loader cannot be copied or pickled: make one where it is needed")
