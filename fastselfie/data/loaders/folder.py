"""Pillow in torch's DataLoader: the plain loader that the fast ones are compared with."""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator, Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from fastselfie.data.loaders.backend import Backend
from fastselfie.data.loaders.batch import DecodedBatch, Index
from fastselfie.data.loaders.crops import read_image
from fastselfie.data.loaders.view import View
from fastselfie.system.resources import usable_cores
from fastselfie.system.signals import SIGNALS


class FolderBackend(Backend):
    """Each worker process decodes whole batches; batches arrive in order."""

    takes_several_views = True

    def load(self, plan: Iterator[Index], views: Sequence[View]) -> Generator[DecodedBatch]:
        workers = self.options.workers
        loader: DataLoader[DecodedBatch] = DataLoader(
            _Decode(self, views),
            sampler=plan,
            batch_size=None,  # an index is a whole batch already
            num_workers=usable_cores() if workers is None else workers,
            worker_init_fn=_quiet,
            # Its own: otherwise opening it draws from the generator that dropout uses, and a
            # resumed run would drop other units than a straight one.
            generator=torch.Generator(),
        )
        iterator = iter(loader)
        try:
            yield from iterator
        finally:
            if isinstance(iterator, _MultiProcessingDataLoaderIter):
                _end_workers(iterator)


class _Decode(TorchDataset[DecodedBatch]):
    """An index to its pixels. A fault is a value: raised in a worker, it is a traceback."""

    def __init__(self, backend: Backend, views: Sequence[View]) -> None:
        self.backend = backend
        self.views = views

    def __getitem__(self, index: Index) -> DecodedBatch:
        source, seed = self.backend.source, self.backend.seed
        shapes = [(len(index.samples), view.size, view.size, 3) for view in self.views]
        images = [np.empty(shape, dtype=np.uint8) for shape in shapes]
        failures = []
        for row, (sample, epoch) in enumerate(zip(*map(np.ndarray.tolist, index), strict=True)):
            out = [pixels[row] for pixels in images]
            if failure := read_image(source, sample, epoch, self.views, seed, out):
                failures.append((row, failure))
        return self.backend.batch(index, images, self.views, failures)


def _quiet(_: int) -> None:
    # Ctrl-C reaches the whole process group, a cluster's signals every process of the job; only
    # the parent answers them. It ends its workers by SIGKILL.
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _end_workers(iterator: _MultiProcessingDataLoaderIter) -> None:
    """Also when an epoch is left early. One may hang in a file system: torch gives each 5 s."""
    here = threading.current_thread() is threading.main_thread()
    # Torch's own handler would call the end of a killed worker an error.
    heard = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if here else None
    try:
        for worker in iterator._workers:
            worker.kill()
        # A worker may die while it holds this event's lock, and to set the event would then wait
        # for ever. No worker is left to see it.
        iterator._workers_done_event = threading.Event()  # type: ignore[assignment]
        iterator._shutdown_workers()  # joins them; an error's traceback may hold the iterator
    finally:
        if here:
            signal.signal(signal.SIGCHLD, heard)
