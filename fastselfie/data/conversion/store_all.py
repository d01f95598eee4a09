"""Converts the images of a source in worker processes, and yields them in order."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterator
from contextlib import closing
from functools import partial

from fastselfie.data.conversion.encode import Recoding, Stored, store
from fastselfie.data.sources.background import DaemonThread
from fastselfie.data.sources.base import RUN, ArraySource, Source
from fastselfie.errors import UserError
from fastselfie.system.processes import map_in_order


def store_all(
    source: Source, start: int, recoding: Recoding, workers: int
) -> Generator[tuple[int, Stored | str]]:
    """Yield (index, converted image or error message) in order, from `start` on.

    Args:
        source: The images.
        start: The index of the first image.
        recoding: Which lossy changes to make.
        workers: Worker processes; with 1, images are converted in this process.

    Raises:
        UserError: A server cannot be read, or a worker was killed.
    """
    convert = partial(_store_runs, recoding=recoding, is_remote=source.is_remote)
    # Each task gets a source of its run only: the whole source may be large to copy. A thread may
    # draw the tasks, so they do not share an iterator with the loop below.
    parts = (source.select(run) for run in source.runs(start))
    # Pixels in memory are only copied: sending them to another process would cost more.
    if workers == 1 or isinstance(source, ArraySource):
        stored = convert(parts)
    else:
        count = -(-(len(source) - start) // RUN)
        stored = map_in_order(convert, parts, min(workers, count) or 1, _results_of)
    with closing(stored):
        for run in source.runs(start):
            for first in range(0, len(run), RUN):
                yield from zip(run[first : first + RUN].tolist(), next(stored), strict=True)


def store_run(run: Source, recoding: Recoding) -> list[Stored | str]:
    """Convert the images of a run; an error is returned as its message.

    Raises:
        UserError: A server cannot be read.
    """
    held = run.fetched()
    return _store_images(held, range(len(held)), recoding)


def _results_of(part: Source) -> int:
    return -(-len(part) // RUN)


def _store_runs(
    runs: Iterator[Source], recoding: Recoding, is_remote: bool
) -> Generator[list[Stored | str]]:
    """Convert runs of images; yield up to RUN at a time, which bounds what a process holds."""
    for run in _read_ahead(runs) if is_remote else runs:
        for first in range(0, len(run), RUN):
            yield _store_images(run, range(first, min(first + RUN, len(run))), recoding)


def _read_ahead(runs: Iterator[Source]) -> Generator[Source]:
    """Read each run from its server while the one before it is converted."""

    def read_next() -> Source | None:
        run = next(runs, None)  # waits for the task too, which may come only after a result
        return None if run is None else run.fetched()

    thread = DaemonThread()
    try:
        coming = thread.submit(read_next)
        while (run := coming.result()) is not None:
            coming = thread.submit(read_next)
            yield run
    finally:
        thread.end()


def _store_images(source: Source, indices: range, recoding: Recoding) -> list[Stored | str]:
    """Convert images; an error is returned as its message, so that the others are kept."""
    results: list[Stored | str] = []
    with warnings.catch_warnings():
        # Pillow warns of odd metadata and of large images, possibly for each image.
        warnings.simplefilter("ignore")
        for index in indices:
            try:
                results.append(store(source, index, recoding))
            except UserError as error:
                results.append(str(error))
    return results
