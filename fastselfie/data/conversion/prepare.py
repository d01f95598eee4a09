"""Converts any source of images to a .beton file, in parallel and resumably: `fastselfie prepare`.

Worker processes convert chunks of images. This process appends the results in the order of the
source, so the file does not depend on the number of workers.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fastselfie.data.beton.reader import BetonError, BetonReader
from fastselfie.data.beton.verify import verify
from fastselfie.data.beton.writer import DEFAULT_PAGE_SIZE, MAX_SIDE, BetonWriter
from fastselfie.data.conversion.encode import Recoding, Stored
from fastselfie.data.conversion.on_ray import store_on_cluster
from fastselfie.data.conversion.skip_list import SkipList
from fastselfie.data.conversion.store_all import store_all
from fastselfie.data.dataset import FileList, class_warning, find_place, open_part
from fastselfie.data.sources.base import ArraySource, Source
from fastselfie.data.sources.formats import DatasetLocation
from fastselfie.data.sources.remote import find_remote
from fastselfie.data.sources.remote_files import is_url
from fastselfie.data.sources.remote_index import ShardIndex
from fastselfie.errors import UserError
from fastselfie.system.console import console, say
from fastselfie.system.ray_cluster import Cluster, ray_cluster
from fastselfie.system.resources import usable_cores


@dataclass(frozen=True)
class Options:
    """Options of `prepare`. `workers` and `on_error` do not change the bytes of an image.

    Attributes:
        recoding: Lossy changes to the images.
        part: The part of the dataset to convert.
        workers: Worker processes; None for one per core; 1 to work in this process.
        on_error: Whether an unreadable image ends the conversion or is skipped.
        page_size: In bytes, a power of two from 4,096 to 2**31, and the size of the largest image.
        shard: (K, N) converts only the K-th of N equal ranges of the images; see merge.py.
        engine: Where to convert: on this machine, or on the nodes of a Ray cluster.
        address: Of the Ray cluster, see `ray_cluster`; None: start one on this machine.
    """

    recoding: Recoding = field(default_factory=Recoding)
    part: Literal["train", "test"] = "train"
    workers: int | None = None
    on_error: Literal["raise", "skip"] = "raise"
    page_size: int = DEFAULT_PAGE_SIZE
    shard: tuple[int, int] = (1, 1)
    engine: Literal["local", "ray"] = "local"
    address: str | None = None


def prepare(named: str | os.PathLike[str], out: Path, options: Options) -> dict[str, Any]:
    """Write the images of `named` to `out`, or resume writing them.

    An incomplete file is called OUT.partial. If the process is killed at any moment, the same call
    resumes. Skipped images are listed beside the file; see `SkipList`.

    Args:
        named: A dataset in any supported format, or the URL of tar or parquet files.
        out: The .beton file to write.
        options: How to convert.

    Returns:
        Numbers for a summary: file, images, skipped, bytes, seconds, images_per_s.

    Raises:
        UserError: `out` exists or does not end in .beton, there are no images, an option is
            invalid, an image is unreadable or too large (unless it is skipped), or all are.
    """
    began = time.perf_counter()
    _check_options(out, options)
    index = ShardIndex(out.with_name(f"{out.name}.index"))
    path = _find(os.fspath(named), index, options)
    found = open_part(path, "train" if options.part == "train" else "held_out")
    source, format_ = found.source, found.format
    _check_recoding(path, source, format_, options)
    if warning := class_warning(source, path):
        say(warning)
    source = _shard_of(source, options.shard)
    out.parent.mkdir(parents=True, exist_ok=True)
    with (
        _opened_cluster(source, options) as cluster,
        BetonWriter(
            out, len(source), options.page_size, fingerprint=_fingerprint(path, source, options)
        ) as writer,
    ):
        resumed = writer.next_source
        skipped = SkipList(out, resumed)
        _append_all(writer, source, options, skipped, cluster)
        if writer.count == 0:
            raise UserError(f"{path}: no image is readable, see {skipped.path}")
        note: dict[str, Any] = {
            "classes": list(source.classes),
            "source": f"{format_} {_name_of(path)}, {options.part}",
            "options": options.recoding.note(),
            "skipped": len(source) - writer.count,
        }
        if options.shard[1] > 1:
            note["shard"] = options.shard
        writer.finish(note, allow_fewer=True)
    index.remove()
    seconds = time.perf_counter() - began
    return {
        "file": str(out),
        "images": writer.count,
        "skipped": note["skipped"],
        "bytes": out.stat().st_size,
        "seconds": round(seconds, 2),
        "images_per_s": round((len(source) - resumed) / seconds, 1),
    }


def _find(named: str, index: ShardIndex, options: Options) -> Path | FileList | DatasetLocation:
    if is_url(named):
        return find_remote(named, index, _workers(options))
    return find_place(named)


def _check_recoding(
    path: Path | FileList | DatasetLocation, source: Source, format_: str, options: Options
) -> None:
    holds_files = source.is_remote or source.encoded(0) is not None
    if options.recoding.recodes() and not holds_files:
        raise UserError(
            f"{path}: {format_} holds pixels, which are stored unchanged: remove --max-side, "
            "--quality and --subsampling"
        )


def _workers(options: Options) -> int:
    return options.workers or usable_cores()


def _name_of(place: object) -> str:
    """Return the name of the file or folder that is read; of a pattern, that of its folder."""
    path = Path(str(place)).resolve()
    return path.parent.name if set("*?[{") & set(path.name) else path.name


def _shard_of(source: Source, shard: tuple[int, int]) -> Source:
    """Select the K-th of N runs of images, for a shard (K, N)."""
    number, shards = shard
    if shards == 1:
        return source
    if shards > len(source):
        raise UserError(f"--shard {number}/{shards}: there are only {len(source)} images: lower N")
    first, end = (len(source) * k // shards for k in (number - 1, number))
    return source.select(np.arange(first, end))


def check(path: Path) -> Iterator[str]:
    """Check a .beton file with a progress bar; see `verify`.

    Args:
        path: The file.

    Yields:
        One line for each problem.
    """
    try:
        total = len(BetonReader(path))
    except BetonError as error:
        yield str(error)
        return
    with _progress() as bar:
        task = bar.add_task(path.name, total=total)
        yield from verify(path, bar.track(range(total), task_id=task))


def check_out(out: Path) -> None:
    """Check the name of a new .beton file.

    Raises:
        UserError: `out` does not end in .beton, or exists.
    """
    if out.suffix != ".beton":
        raise UserError(f"{out}: --out must end in .beton: the suffix identifies the format")
    if out.exists():
        raise UserError(f"{out}: exists already: move it away or choose another --out")


def _check_options(out: Path, options: Options) -> None:
    recoding, size = options.recoding, options.page_size
    check_out(out)
    if not 4096 <= size <= 1 << 31 or size & (size - 1):
        raise UserError(f"--page-size {size}: give a power of two from 4096 to 2147483648")
    if recoding.quality is not None and not 1 <= recoding.quality <= 100:
        raise UserError(f"--quality {recoding.quality}: give 1 to 100")
    if recoding.max_side is not None and not 1 <= recoding.max_side <= MAX_SIDE:
        raise UserError(f"--max-side {recoding.max_side}: give 1 to {MAX_SIDE} pixels")
    shard, shards = options.shard
    if not 1 <= shard <= shards:
        raise UserError(f"--shard {shard}/{shards}: give K/N with K from 1 to N")
    if options.workers is not None and options.workers < 1:
        raise UserError(f"--workers {options.workers}: give at least 1")
    if options.address is not None and options.engine != "ray":
        raise UserError(f"--address {options.address}: is of a Ray cluster: add --engine ray")


def _fingerprint(path: object, source: Source, options: Options) -> str:
    """Return a hash of what the bytes depend on: names and labels of the images, and options."""
    digest = hashlib.sha256()
    prefix = str(path)
    for index in range(len(source)):
        # Without the prefix, because the path may be spelt in another way, or have been moved.
        digest.update(source.name(index).removeprefix(prefix).encode(errors="surrogateescape"))
        digest.update(b"\0")
    digest.update(source.version.encode())
    digest.update(np.ascontiguousarray(source.labels, dtype="<i8").tobytes())
    digest.update(json.dumps([list(source.classes), options.recoding.note()]).encode())
    return digest.hexdigest()


def _opened_cluster(source: Source, options: Options) -> AbstractContextManager[Cluster | None]:
    """Return the cluster to convert on; None converts on this machine."""
    # Pixels in memory are only copied: sending them to another process would cost more.
    if options.engine == "local" or isinstance(source, ArraySource):
        return nullcontext()
    return ray_cluster(options.address)


def _append_all(
    writer: BetonWriter,
    source: Source,
    options: Options,
    skipped: SkipList,
    cluster: Cluster | None,
) -> None:
    stored_all = _stored_all(source, writer.next_source, options, cluster)
    with _progress() as bar, closing(stored_all):
        task = bar.add_task(writer.path.name, total=len(source), completed=writer.next_source)
        for index, stored in stored_all:
            name = source.name(index)
            if isinstance(stored, str):
                reason = stored
            else:
                data, mode, width, height = stored
                if max(width, height) <= MAX_SIDE and len(data) <= options.page_size:
                    writer.append(data, mode, width, height, int(source.labels[index]), index)
                    bar.advance(task)
                    continue
                reason = (
                    f"{name}: {width}x{height} pixels in {len(data)} bytes are more than a page "
                    f"of {options.page_size} holds: use --max-side or a larger --page-size"
                )
            if options.on_error == "raise":
                raise UserError(
                    f"{reason}, or resume with --on-error skip (finished images are kept)"
                )
            skipped.add(index, name, reason)
            bar.advance(task)


def _stored_all(
    source: Source, start: int, options: Options, cluster: Cluster | None
) -> Generator[tuple[int, Stored | str]]:
    if cluster is None:
        return store_all(source, start, options.recoding, _workers(options))
    return store_on_cluster(cluster, source, start, options.recoding, options.workers)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
