"""Images on servers, read in runs: what `fastselfie prepare` sends to its workers.

Without the modules that open datasets: with them a worker takes seconds to start.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fastselfie.data.draws import IntArray
from fastselfie.data.sources.base import Source, changed
from fastselfie.data.sources.parquet import ParquetSource, image_bytes, read_row_group
from fastselfie.data.sources.remote_files import RemoteFile, open_remote
from fastselfie.data.sources.webdataset import TarSource
from fastselfie.errors import UserError

TABLE_BLOCK = 1 << 16  # bytes: the metadata of most parquet files
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
        group, reader = int(self.place[0, 1]), open_remote(file, TABLE_BLOCK)
        cells = read_row_group(reader, file.title, group, self.column)
        found: list[bytes | str] = []
        for index, row in enumerate(self.place[:, 2].tolist()):
            try:
                found.append(image_bytes(cells[row], self.name(index)))
            except UserError as error:
                found.append(str(error))
        return found
