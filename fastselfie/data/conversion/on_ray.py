"""Converts images on the nodes of a Ray cluster: `fastselfie prepare --engine ray`.

The nodes read and convert, and this machine writes. One process must write the file in order
anyway, so merging shards would only read and write every byte once more.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable

import numpy as np

from fastselfie.data.conversion.encode import Stored
from fastselfie.data.sources.base import Source
from fastselfie.errors import UserError
from fastselfie.system.ray_cluster import Cluster

Converted = list[Stored | str]  # an error instead of an image that is unreadable


def store_on_cluster(
    cluster: Cluster,
    convert: Callable[[Source], Converted],
    parts: Iterable[Source],
    workers: int | None,
) -> Generator[Converted]:
    """Yield convert(part) for every part, in order, computed on a cluster.

    Args:
        cluster: The cluster.
        convert: Converts all images of a source; sent to the nodes pickled.
        parts: Sources, which the nodes open at the same paths.
        workers: Parts at a time; None: one per core of the cluster.

    Raises:
        UserError: A node cannot read an image that this machine can, or see `map_in_order`.
    """
    for part, converted in cluster.map_in_order(convert, parts, workers):
        _check_failures(convert, part, converted)
        yield converted


def _check_failures(
    convert: Callable[[Source], Converted], part: Source, converted: Converted
) -> None:
    """Check that images failed for what they are, not for want of the files on a node."""
    for index, stored in enumerate(converted):
        if isinstance(stored, str):
            (here,) = convert(part.select(np.array([index], dtype=np.int64)))
            if not isinstance(here, str):
                raise UserError(
                    f"{stored}: a node of the cluster cannot read it, but this machine can: put "
                    "the images on every node at the same path"
                )
