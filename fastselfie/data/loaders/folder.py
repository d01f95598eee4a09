"""Pillow in torch's DataLoader: the plain loader that the fast ones are compared with."""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator, Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from fastselfie.config import DataConfig
from fastselfie.data.dataset import Source
from fastselfie.data.loaders.base import DecodedBatch, Index, Loader
from fastselfie.data.loaders.crops import boxes, read_box, shift
from fastselfie.errors import UserError
from fastselfie.system.accelerator import usable_cores
from fastselfie.system.signals import SIGNALS


class FolderLoader(Loader):
    """Each worker process decodes whole batches; batches arrive in order."""

    def __init__(self, source: Source, data: DataConfig, seed: int, device: torch.device) -> None:
        super().__init__(len(source), data, seed, device)
        self.source = source
        self.workers = usable_cores() if data.workers is None else data.workers

    def load(self, plan: Iterator[Index], augment: bool) -> Generator[DecodedBatch]:
        loader: DataLoader[DecodedBatch] = DataLoader(
            _Decode(self.source, self.data, self.seed, augment),
            sampler=_Plan(plan),
            batch_size=None,  # an index is a whole batch already
            num_workers=self.workers,
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

    def __init__(self, source: Source, data: DataConfig, seed: int, augment: bool) -> None:
        self.source = source
        self.data = data
        self.seed = seed
        self.augment = augment

    def __getitem__(self, index: Index) -> DecodedBatch:
        size = self.data.image_size
        images = np.empty((len(index.samples), size, size, 3), dtype=np.uint8)
        failures = []
        for row, (sample, epoch) in enumerate(zip(*index, strict=True)):
            try:
                image = self.source.image(int(sample))
            except UserError as error:
                failures.append((row, str(error)))
                continue
            sizes = np.asarray([image.size], dtype=np.int64)
            one = Index(np.asarray([sample]), np.asarray([epoch]))
            box = boxes(self.data, self.seed, one, sizes, self.augment)[0]
            images[row] = read_box(image, box, size)
        if self.augment:
            shift(images, self.data, self.seed, index)
        labels = torch.from_numpy(self.source.labels[index.samples])
        return DecodedBatch(torch.from_numpy(images), labels, failures)


class _Plan(Sampler[Index]):
    """A sampler that hands out whole index batches."""

    def __init__(self, plan: Iterator[Index]) -> None:
        self.plan = plan

    def __iter__(self) -> Iterator[Index]:
        return self.plan


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
