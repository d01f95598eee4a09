"""Streams of batches from one backend, for training and for evaluation."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from functools import partial

import numpy as np
import torch

from fastselfie.data.dataset import Source
from fastselfie.data.loaders.backend import BackendOptions, flips_of
from fastselfie.data.loaders.backends import backend_class, choose_backend
from fastselfie.data.loaders.batch import Batch, DecodedBatch, Index
from fastselfie.data.loaders.failures import FailurePolicy
from fastselfie.data.loaders.sampling import SampleStream, in_order
from fastselfie.data.loaders.to_device import prefetched, to_device
from fastselfie.data.loaders.view import View
from fastselfie.system.distributed import ALONE, Ranks


class BatchStreams:
    """Endless and ordered streams of `Batch`, which may cross the ends of epochs.

    The training loop of this project uses them; `Loader` adds epochs. Batches keep their flips,
    which `patchify` does on its way over the bytes.

    Attributes:
        source: The images.
        backend_name: What decodes them, and in `why` the reason.
        seed: Of all random draws.
    """

    def __init__(
        self,
        source: Source,
        views: tuple[View, ...],
        seed: int,
        device: torch.device,
        workers: int | None,
        failures: FailurePolicy,
        backend: str,
        mirror: bool,
    ) -> None:
        self.source, self.seed, self.device = source, seed, device
        self._views = views
        self._failures = failures
        self.backend_name, self.why = choose_backend(backend, source, views, device)
        made = backend_class(self.backend_name)
        if len(views) > 1 and not made.takes_several_views:
            raise ValueError(
                f"backend is {self.backend_name}, which makes one view of an image: use native or "
                f"folder for {len(views)} views"
            )
        options = BackendOptions(seed, device, workers, mirror, failures)
        self._backend = made(source, views, options)
        self._samples = SampleStream(len(source), seed)

    @property
    def skipped(self) -> int:
        """How many bad images `on_error: skip` has met since the loader was made."""
        return self._failures.skipped

    @property
    def repeats(self) -> bool:
        """Whether the same samples come with the same pixels again, as a resumed run needs."""
        return self._backend.repeats

    def stream(self, start: int, batch_size: int, ranks: Ranks = ALONE) -> Generator[Batch]:
        """Endless augmented batches, from the sample at position `start` on.

        batch_size: over all `ranks`, each of which gets its own equal part of every batch.
        """
        return self._batches(lambda: self._samples.batches(start, batch_size, ranks), self._views)

    def in_order(
        self, batch_size: int, limit: int | None = None, ranks: Ranks = ALONE, augment: bool = False
    ) -> Generator[Batch]:
        """`limit` images once, in order, as they are; the last batch may be smaller.

        augment: instead with the crops and flips that they would have in the first epoch. limit:
        see `sampling.in_order`.
        """
        count = len(self.source)
        still = tuple(view.without_augmentation() for view in self._views)
        return self._batches(
            lambda: in_order(count, batch_size, limit, ranks), self._views if augment else still
        )

    def again(self, index: Index) -> Batch:
        """The augmented batch of `index`, as `stream` made it when it came to those samples."""
        with closing(self._batches(lambda: iter([index]), self._views)) as found:
            return next(found)

    def _batches(
        self, plan: Callable[[], Iterator[Index]], views: Sequence[View]
    ) -> Generator[Batch]:
        # The plan is walked twice: a backend reads ahead of what is delivered.
        with closing(self._backend.load(plan(), views)) as loaded:
            pairs = zip(loaded, plan(), strict=False)
            yield from prefetched((self._on_device(*pair, views) for pair in pairs), self.device)

    def _on_device(self, decoded: DecodedBatch, index: Index, views: Sequence[View]) -> Batch:
        """The batch on the device, with other images in the place of failed ones."""
        count = len(index.samples)
        rows = self._failures.rows(count, decoded.failures)
        while rows is not None and len(rows) == 0:  # none is good: take the next ones of the set
            index = Index((index.samples + count) % len(self.source), index.epochs)
            with closing(self._backend.load(iter([index]), views)) as loaded:
                decoded = next(loaded)
            rows = self._failures.rows(count, decoded.failures)
        images, labels = decoded.views, decoded.labels
        if rows is not None:
            taken = torch.from_numpy(rows).to(labels.device)
            images, labels = [each[taken] for each in images], labels[taken]
            index = Index(index.samples[rows], index.epochs[rows])
        flips = []
        for number, view in enumerate(views):
            flip = flips_of(view, number, self.seed, index)
            flips.append(torch.from_numpy(np.zeros_like(flip) if decoded.flipped else flip))
        on_device = partial(to_device, device=self.device)
        return Batch(
            tuple(map(on_device, images)), on_device(labels), tuple(map(on_device, flips)), index
        )
