"""Opens tar and parquet files on servers as sources, which `fastselfie prepare` streams.

Nothing is copied to the disk. A parquet file's images are read once. A tar file is read twice, as
only its headers say what it holds: once to find the images, once to convert them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fastselfie.data.draws import IntArray
from fastselfie.data.sources.base import Source, changed
from fastselfie.data.sources.formats import DatasetLocation, Format
from fastselfie.data.sources.parquet import (
    ParquetSource,
    ScannedFile,
    image_bytes,
    read_row_group,
    scan_file,
    source_of_files,
)
from fastselfie.data.sources.remote_files import RemoteFile, open_remote
from fastselfie.data.sources.remote_index import ShardIndex
from fastselfie.data.sources.remote_listing import CONNECTIONS, list_files
from fastselfie.data.sources.shard_checks import report_missing
from fastselfie.data.sources.shards import select_part
from fastselfie.data.sources.tar_shard import Shard, scan_shard
from fastselfie.data.sources.webdataset import TarSource, source_of_shards
from fastselfie.errors import UserError
from fastselfie.system.console import say
from fastselfie.system.processes import map_in_order

_SCAN_BLOCK = 4 << 20  # bytes: members beyond it are skipped, not read
_TABLE_BLOCK = 1 << 16  # bytes: the metadata of most parquet files
_RUN_BYTES, _RUN_IMAGES, _RUN_GAP = 8 << 20, 64, 1 << 20  # of the images that one request reads


@dataclass(frozen=True)
class FetchedSource(Source):
    """Encoded images that were read from a server.

    Attributes:
        contents: Of each the bytes, or a message that says why there are none.
        names: What messages call each.
        labels: (n,) int64.
        classes: Names of the classes.
    """

    contents: Sequence[bytes | str]
    names: Sequence[str]
    labels: IntArray
    classes: Sequence[str]
    _per_image = ("labels", "contents", "names")

    def name(self, index: int) -> str:
        return self.names[index]

    def encoded(self, index: int) -> bytes:
        content = self.contents[index]
        if isinstance(content, str):
            raise UserError(content)
        return content


class RemoteSource(Source):
    """What the sources here have in common.

    Attributes:
        remote: The files, by the name that messages call them.
    """

    remote: Mapping[str, RemoteFile]
    is_remote = True

    def fetched(self) -> FetchedSource:
        """Read all images of this source, which should be a run.

        Raises:
            UserError: They cannot be read, or the file has changed.
        """
        names = [self.name(index) for index in range(len(self))]
        return FetchedSource(self._contents(), names, self.labels, self.classes)

    def encoded(self, index: int) -> bytes:
        return self.select(np.asarray([index])).fetched().encoded(0) or b""

    @property
    def version(self) -> str:
        return repr([(file.size, file.version) for file in self.remote.values()])

    def _contents(self) -> list[bytes | str]:
        raise NotImplementedError


@dataclass(frozen=True)
class RemoteTarSource(RemoteSource, TarSource):
    """Images in tar files on a server. A run is read by one request."""

    remote: Mapping[str, RemoteFile]

    def select(self, indices: IntArray) -> Source:
        chosen = super().select(indices)
        used = [self.shards[k] for k in np.unique(self.shard[indices])]
        return changed(chosen, remote={name: self.remote[name] for name in used})

    def runs(self, start: int) -> Iterator[IntArray]:
        if start == len(self):
            return
        begin, end = self.offset[start:], self.offset[start:] + self.size[start:]
        # Another shard, a gap, or images that are not in the order of the shard.
        apart = (np.diff(self.shard[start:]) != 0) | (begin[1:] < end[:-1])
        apart |= begin[1:] - end[:-1] > _RUN_GAP
        first = 0
        for last in range(1, len(begin) + 1):
            if (
                last == len(begin)
                or apart[last - 1]
                or last - first == _RUN_IMAGES
                or end[last] - begin[first] > _RUN_BYTES
            ):
                yield np.arange(start + first, start + last)
                first = last

    def _contents(self) -> list[bytes | str]:
        (file,) = self.remote.values()
        begin = int(self.offset[0])
        data = file.read(begin, int(self.offset[-1] + self.size[-1]))
        places = zip((self.offset - begin).tolist(), self.size.tolist(), strict=True)
        return [data[at : at + size] for at, size in places]


@dataclass(frozen=True)
class RemoteParquetSource(RemoteSource, ParquetSource):
    """Images in parquet files on a server. A run is what is left of a row group."""

    remote: Mapping[str, RemoteFile]

    def select(self, indices: IntArray) -> Source:
        chosen = super().select(indices)
        used, number = np.unique(self.place[indices, 0], return_inverse=True)
        names = [self.files[k] for k in used]
        place = np.column_stack([number, self.place[indices, 1:]])
        remote = {name: self.remote[name] for name in names}
        return changed(chosen, files=names, place=place, remote=remote)

    def runs(self, start: int) -> Iterator[IntArray]:
        groups = self.place[start:, :2]
        ends = np.flatnonzero((groups[1:] != groups[:-1]).any(axis=1)) + 1
        yield from np.split(np.arange(start, len(self)), ends) if len(groups) else ()

    def _contents(self) -> list[bytes | str]:
        (file,) = self.remote.values()
        group, reader = int(self.place[0, 1]), open_remote(file, _TABLE_BLOCK)
        cells = read_row_group(reader, file.title, group, self.column)
        found: list[bytes | str] = []
        for index, row in enumerate(self.place[:, 2].tolist()):
            try:
                found.append(image_bytes(cells[row], self.name(index)))
            except UserError as error:
                found.append(str(error))
        return found


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
    with closing(_scanned(title, files, index, workers)) as shards:
        source = source_of_shards(title, part, names, shards)
    return RemoteTarSource(**_fields(source), remote=dict(zip(names, files, strict=True)))


def _scanned(
    title: str, files: Sequence[RemoteFile], index: ShardIndex, workers: int
) -> Generator[Shard]:
    """Yield the members of each file, from the index or found now."""
    missing = [file for file in files if file not in index]
    if missing:
        say(f"{title}: looking for the images in {len(missing)} of {len(files)} tar files")
    if workers == 1:
        scanned = (_scan(file) for file in missing)
    else:
        scanned = map_in_order(partial(map, _scan), missing, min(workers, len(missing)))
    with closing(scanned) as found:
        for file in files:
            if file not in index:
                index.add(file, next(found))
            yield index.get(file)


def _scan(file: RemoteFile) -> Shard:
    return scan_shard(open_remote(file, _SCAN_BLOCK), file.title)


def _open_tables(title: str, part: str, files: Sequence[RemoteFile]) -> RemoteParquetSource:
    def scan(file: RemoteFile) -> ScannedFile:
        return scan_file(open_remote(file, _TABLE_BLOCK), file.title)

    names = [file.title for file in files]
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        source = source_of_files(title, part, names, pool.map(scan, files))
    return RemoteParquetSource(**_fields(source), remote=dict(zip(names, files, strict=True)))


def _fields(source: TarSource | ParquetSource) -> dict[str, Any]:
    return {field.name: getattr(source, field.name) for field in fields(source)}
