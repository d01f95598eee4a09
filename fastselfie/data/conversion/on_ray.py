"""Converts images on the nodes of a Ray cluster: `fastselfie prepare --engine ray`.

The nodes read and convert, and this machine writes. One process must write the file in order
anyway, so merging shards would only read and write every byte once more.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from functools import partial

import numpy as np

from fastselfie.data.conversion.encode import Recoding, Stored
from fastselfie.data.conversion.store_all import store_run
from fastselfie.data.draws import IntArray
from fastselfie.data.sources.base import Source
from fastselfie.errors import UserError
from fastselfie.system.ray_cluster import Cluster

# Images per task. One process sends all tasks, some thousands a second.
_RUN = 64


def store_on_cluster(
    cluster: Cluster, source: Source, start: int, recoding: Recoding, workers: int | None
) -> Generator[tuple[int, Stored | str]]:
    """Yield (index, converted image or error message) in order, from `start` on.

    Args:
        cluster: The cluster. Its nodes open the files of `source` at the same paths or URLs.
        source: The images.
        start: The index of the first image.
        recoding: Which lossy changes to make.
        workers: Runs of images at a time; None: one per core of the cluster.

    Raises:
        UserError: A node cannot read an image that this machine can, or see `map_in_order`.
    """
    parts = (source.select(run) for run in _runs(source, start))
    index = start
    convert = partial(store_run, recoding=recoding)
    for part, converted in cluster.map_in_order(convert, parts, workers):
        for place, stored in enumerate(converted):
            if isinstance(stored, str):
                _check_failure(part, place, recoding, stored)
            yield index, stored
            index += 1


def _runs(source: Source, start: int) -> Iterator[IntArray]:
    if source.is_remote:
        yield from source.runs(start)
        return
    for first in range(start, len(source), _RUN):
        yield np.arange(first, min(first + _RUN, len(source)), dtype=np.int64)


def _check_failure(part: Source, place: int, recoding: Recoding, message: str) -> None:
    """Check that an image failed for what it is, not for want of its file on a node."""
    (here,) = store_run(part.select(np.array([place], dtype=np.int64)), recoding)
    if not isinstance(here, str):
        raise UserError(
            f"{message}: a node of the cluster cannot read it, but this machine can: put the "
            "images on every node at the same path"
        )
