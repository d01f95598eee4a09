"""`fastselfie prepare`: any source of images into one .beton file, in parallel and resumably.

Worker processes turn images into the bytes to store, a chunk of images at a time; this process
appends them in the order of the source, so the file does not depend on how many workers there are.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from fastselfie.data.beton import BetonError, BetonReader, verify
from fastselfie.data.beton_writer import DEFAULT_PAGE_SIZE, MAX_SIDE, BetonWriter
from fastselfie.data.encode import Recoding, Stored, store
from fastselfie.data.images import ArraySource, Source
from fastselfie.data.skipped import SkipList
from fastselfie.data.sources import open_part
from fastselfie.errors import UserError
from fastselfie.log import console

_CHUNK = 8  # images a task: enough to hide the hand-over, few enough for large photographs
_AHEAD = 3  # tasks a worker that are begun or waiting: bounds the memory


@dataclass(frozen=True)
class Options:
    """How to prepare. Of these `recoding` and `part` decide the bytes, the others do not.

    workers    processes; None: one a core; 1: none, this process does the work
    page_size  bytes, a power of two from 4,096 to 2**31: the largest image that fits
    """

    recoding: Recoding = field(default_factory=Recoding)
    part: Literal["train", "test"] = "train"
    workers: int | None = None
    on_error: Literal["raise", "skip"] = "raise"
    page_size: int = DEFAULT_PAGE_SIZE


def prepare(path: Path, out: Path, options: Options) -> dict[str, Any]:
    """Write the images of `path` to `out`, or go on writing them; return figures for a summary.

    Until it is whole the file is called OUT.partial; killed at any moment, the same call goes on.
    Skipped images are listed beside it, see `SkipList`.

    Raises:
        UserError: `out` exists or is no .beton name, nothing to read, options that do not fit, an
            unreadable image with on_error raise, every image unreadable, too large an image.
    """
    began = time.perf_counter()
    _check(out, options)
    found = open_part(path, options.part)
    if found is None:
        raise UserError(f"{path}: holds no {options.part} images: give another --part or source")
    source, kind = found
    if options.recoding.recodes() and source.encoded(0) is None:
        raise UserError(
            f"{path}: {kind} holds pixels, which are stored as they are: leave out --max-side, "
            "--quality and --subsampling"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    with BetonWriter(
        out, len(source), options.page_size, fingerprint=_fingerprint(path, source, options)
    ) as writer:
        resumed = writer.next_source
        skipped = SkipList(out, resumed)
        _append_all(writer, source, options, skipped)
        if writer.count == 0:
            raise UserError(f"{path}: not one image is readable, see {skipped.path}")
        note = {
            "classes": list(source.classes),
            "source": f"{kind} {path.resolve().name}, {options.part}",
            "options": options.recoding.note(),
            "skipped": len(source) - writer.count,
        }
        writer.finish(note, allow_fewer=True)
    seconds = time.perf_counter() - began
    return {
        "file": str(out),
        "images": writer.count,
        "skipped": note["skipped"],
        "bytes": out.stat().st_size,
        "seconds": round(seconds, 2),
        "images_per_s": round((len(source) - resumed) / seconds, 1),
    }


def check(path: Path) -> Iterator[str]:
    """Yield one line a problem of a .beton file, none for a sound one, with a progress bar."""
    try:
        total = len(BetonReader(path))
    except BetonError as error:
        yield str(error)
        return
    with _progress() as bar:
        task = bar.add_task(path.name, total=total)
        yield from verify(path, bar.track(range(total), task_id=task))


def _check(out: Path, options: Options) -> None:
    recoding, size = options.recoding, options.page_size
    if out.suffix != ".beton":
        raise UserError(f"{out}: --out must end in .beton, by which the file is known as one")
    if out.exists():
        raise UserError(f"{out}: exists already: move it away or choose another --out")
    if not 4096 <= size <= 1 << 31 or size & (size - 1):
        raise UserError(f"--page-size {size}: give a power of two from 4096 to 2147483648")
    if recoding.quality is not None and not 1 <= recoding.quality <= 100:
        raise UserError(f"--quality {recoding.quality}: give 1 to 100")
    if recoding.max_side is not None and not 1 <= recoding.max_side <= MAX_SIDE:
        raise UserError(f"--max-side {recoding.max_side}: give 1 to {MAX_SIDE} pixels")
    if options.workers is not None and options.workers < 1:
        raise UserError(f"--workers {options.workers}: give at least 1")


def _fingerprint(path: Path, source: Source, options: Options) -> str:
    """What decides the bytes: the images' names and labels, and the options."""
    digest = hashlib.sha256()
    prefix = str(path)
    for index in range(len(source)):
        # Without the prefix: the set may be reached by another spelling, or have been moved.
        digest.update(source.name(index).removeprefix(prefix).encode(errors="surrogateescape"))
        digest.update(b"\0")
    digest.update(np.ascontiguousarray(source.labels, dtype="<i8").tobytes())
    digest.update(json.dumps([list(source.classes), options.recoding.note()]).encode())
    return digest.hexdigest()


def _append_all(writer: BetonWriter, source: Source, options: Options, skipped: SkipList) -> None:
    with _progress() as bar:
        task = bar.add_task(writer.path.name, total=len(source), completed=writer.next_source)
        for index, found in _store_all(source, writer.next_source, options):
            name = source.name(index)
            stored = _fitting(found, name, options.page_size)
            if isinstance(stored, Stored):
                data, mode, width, height = stored
                writer.append(data, mode, width, height, int(source.labels[index]), index)
            elif options.on_error == "raise":
                raise UserError(f"{stored}, or go on with --on-error skip (what is done is kept)")
            else:
                skipped.add(index, name, stored)
            bar.advance(task)


def _fitting(stored: Stored | str, name: str, page_size: int) -> Stored | str:
    """The same, or what is wrong where the format cannot hold the image."""
    if isinstance(stored, str):
        return stored
    if max(stored.width, stored.height) > MAX_SIDE or len(stored.data) > page_size:
        return (
            f"{name}: {stored.width}x{stored.height} pixels in {len(stored.data)} bytes are more "
            f"than a page of {page_size} holds: use --max-side or a larger --page-size"
        )
    return stored


def _store_all(source: Source, start: int, options: Options) -> Iterator[tuple[int, Stored | str]]:
    """(index, what to store or what is wrong with it) from `start` on, in order."""
    workers = options.workers or len(os.sched_getaffinity(0))
    chunks = (
        np.arange(first, min(first + _CHUNK, len(source)), dtype=np.int64)
        for first in range(start, len(source), _CHUNK)
    )
    # Pixels in memory are only copied: handing them to another process would cost more.
    if workers == 1 or isinstance(source, ArraySource):
        for chunk in chunks:
            for index in chunk:
                yield int(index), _store_chunk(source, [int(index)], options.recoding)[0]
        return
    # Not a multiprocessing.Pool: that waits for ever for a worker that the system has killed.
    # Spawned, not forked: this process has threads, and a fork would inherit the file's lock.
    pool = ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn"), initializer=_begin_worker
    )
    pending: deque[tuple[Any, Future[list[Stored | str]]]] = deque()
    try:
        for chunk in chunks:
            part = source.select(chunk)
            rows = range(len(chunk))
            with _uninterrupted():  # it may start a worker
                future = pool.submit(_store_chunk, part, rows, options.recoding)
            pending.append((chunk, future))
            if len(pending) >= _AHEAD * workers:
                yield from _take(*pending.popleft())
        while pending:
            yield from _take(*pending.popleft())
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process was killed, perhaps for lack of memory: run the same command to go "
            "on, with fewer --workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _take(chunk: Any, future: Future[list[Stored | str]]) -> Iterator[tuple[int, Stored | str]]:
    yield from zip((int(index) for index in chunk), future.result(), strict=True)


def _store_chunk(source: Source, indices: Any, recoding: Recoding) -> list[Stored | str]:
    """A fault is a value: raised in a worker, it is a traceback there and loses the others."""
    results: list[Stored | str] = []
    with warnings.catch_warnings():
        # Pillow's, of odd metadata and of large images: there may be one an image.
        warnings.simplefilter("ignore")
        for index in indices:
            try:
                results.append(store(source, index, recoding))
            except UserError as error:
                results.append(str(error))
    return results


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C takes effect at the end; processes started inside have it blocked.

    Otherwise one that is not yet in `_begin_worker` prints a traceback, on its own or because this
    process left in the middle of starting it. Blocking alone would not do: another thread, of a
    numerical library, may receive the signal for this one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are not this thread's
        return
    seen: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: seen.append(number))
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        signal.signal(signal.SIGINT, before)
    if seen:
        raise KeyboardInterrupt


def _begin_worker() -> None:
    # Ctrl-C reaches the whole process group; only the parent answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """A worker waits for work for ever, also of a parent that was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
