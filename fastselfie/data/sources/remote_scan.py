"""Finds the images in tar files on a server: in this process, or in worker processes."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from contextlib import closing
from functools import partial
from threading import Event

from fastselfie.data.sources.background import DaemonThread
from fastselfie.data.sources.remote_files import RemoteFile, open_remote
from fastselfie.data.sources.remote_index import ShardIndex
from fastselfie.data.sources.tar_shard import Shard, scan_shard
from fastselfie.system.console import say
from fastselfie.system.processes import map_in_order

_BLOCK = 4 << 20  # bytes: members beyond it are skipped, not read
_THREADS = 4  # files at a time in this process: one waits for its server, another is read


def scan_files(
    title: str, files: Sequence[RemoteFile], index: ShardIndex, workers: int
) -> Generator[Shard]:
    """Yield the members of each file, from the index or found now.

    Args:
        title: What messages call the dataset.
        files: Tar files.
        index: What was found already; what is found now is added.
        workers: Processes; with 1, threads of this process, as processes take a second to start.

    Raises:
        UserError: A file cannot be read, or see `scan_shard`.
    """
    missing = [file for file in files if file not in index]
    if missing:
        say(f"{title}: looking for the images in {len(missing)} of {len(files)} tar files")
    if workers == 1:
        found = _scan_in_threads(missing)
    else:
        found = map_in_order(partial(map, _scan), missing, min(workers, len(missing)))
    with closing(found):
        for file in files:
            if file not in index:
                index.add(file, next(found))
            yield index.get(file)


def _scan_in_threads(files: Sequence[RemoteFile]) -> Generator[Shard]:
    """Yield the members of each file, in order."""
    ended = Event()
    threads = [DaemonThread() for _ in range(min(_THREADS, len(files)))]
    running = deque(
        threads[number % _THREADS].submit(partial(_scan, file, ended))
        for number, file in enumerate(files)
    )
    try:
        while running:
            yield running.popleft().result()
    finally:
        ended.set()
        for thread in threads:
            thread.end()


def _scan(file: RemoteFile, ended: Event | None = None) -> Shard:
    return scan_shard(open_remote(file, _BLOCK, ended), file.title)
