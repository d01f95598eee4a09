"""Opens tar and parquet files on servers as sources, which `fastselfie prepare` streams.

Nothing is copied to the disk. A parquet file's images are read once. A tar file is read twice, as
only its headers say what it holds: once to find the images, once to convert them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from fastselfie.data.sources.base import Source
from fastselfie.data.sources.formats import DatasetLocation, Format
from fastselfie.data.sources.parquet import (
    ParquetSource,
    ScannedFile,
    scan_file,
    source_of_files,
)
from fastselfie.data.sources.remote_files import RemoteFile, open_remote
from fastselfie.data.sources.remote_index import ShardIndex
from fastselfie.data.sources.remote_listing import CONNECTIONS, list_files
from fastselfie.data.sources.remote_scan import scan_files
from fastselfie.data.sources.remote_sources import (
    TABLE_BLOCK,
    RemoteParquetSource,
    RemoteTarSource,
)
from fastselfie.data.sources.shard_checks import report_missing
from fastselfie.data.sources.shards import select_part
from fastselfie.data.sources.webdataset import TarSource, source_of_shards


def find_remote(url: str, index: ShardIndex, workers: int) -> DatasetLocation:
    """Find the dataset that a URL names, for `open_part`.

    Args:
        url: See `list_files`.
        index: What an interrupted command found in tar files already.
        workers: Processes that look for the images in tar files; with 1, this process does.

    Raises:
        UserError: Nothing is there, or the server refuses.
    """
    listing = list_files(url)
    opened: Callable[[str, str, Sequence[RemoteFile]], Source]
    if listing.suffix == ".tar":
        opened = partial(_open_tars, index=index, workers=workers)
        name = "WebDataset"
    else:
        opened, name = _open_tables, "parquet"

    def open_files(_: Path, part: str, beside_train: bool) -> Source | None:
        files: Sequence[RemoteFile] | None = None if beside_train else listing.files
        if listing.is_folder:
            files = select_part(listing.files, part, beside_train)
        if files is None:
            return None
        if listing.is_folder:
            report_missing(listing.title, [file.name for file in files])
        return opened(listing.title, part, files)

    format_ = Format(name, lambda _: True, open_files)
    return DatasetLocation(Path(listing.title), format_, {}, listing.title)


def _open_tars(
    title: str, part: str, files: Sequence[RemoteFile], index: ShardIndex, workers: int
) -> RemoteTarSource:
    names = [file.title for file in files]
    with closing(scan_files(title, files, index, workers)) as shards:
        source = source_of_shards(title, part, names, shards)
    return RemoteTarSource(**_fields(source), remote=dict(zip(names, files, strict=True)))


def _open_tables(title: str, part: str, files: Sequence[RemoteFile]) -> RemoteParquetSource:
    def scan(file: RemoteFile) -> ScannedFile:
        return scan_file(open_remote(file, TABLE_BLOCK), file.title)

    names = [file.title for file in files]
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        source = source_of_files(title, part, names, pool.map(scan, files))
    return RemoteParquetSource(**_fields(source), remote=dict(zip(names, files, strict=True)))


def _fields(source: TarSource | ParquetSource) -> dict[str, Any]:
    return {field.name: getattr(source, field.name) for field in fields(source)}
