"""Presents several `.beton` files as one reader, which numbers their samples in order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastselfie.data.beton.reader import BetonError, BetonReader
from fastselfie.system.console import say_once
from fastselfie.system.resources import allow_open_files

# The columns of a reader that have an item for each sample.
_COLUMNS = ("offset", "size", "mode", "width", "height", "label")


class BetonFileSet:
    """Samples of several `.beton` files, numbered from 0 in the order of the files.

    It has what `BetonReader` has for a sample, so that loaders need not tell the two apart. It
    keeps the memory maps of the files and one table of all samples.

    Args:
        readers: The open files, at least one. Their own tables are dropped to save memory, so do
            not use the readers afterwards.

    Attributes:
        paths: The files.
        num_samples: n, in all files.
        offset: (n,) uint64. Where the image begins, in bytes from the start of its own file.
        size, mode, width, height, label: (n,) each, as in `BetonReader`.
    """

    offset: NDArray[np.uint64]
    size: NDArray[np.uint64]
    mode: NDArray[np.uint8]
    width: NDArray[np.uint16]
    height: NDArray[np.uint16]
    label: NDArray[np.int64]

    def __init__(self, readers: Sequence[BetonReader]) -> None:
        self.paths = tuple(reader.path for reader in readers)
        self._data = [reader.data.data for reader in readers]
        self._ends = np.cumsum([len(reader) for reader in readers])
        self.num_samples = int(self._ends[-1])
        for name in _COLUMNS:
            setattr(self, name, np.concatenate([getattr(reader, name) for reader in readers]))
            for reader in readers:
                delattr(reader, name)

    def __len__(self) -> int:
        return self.num_samples

    def __reduce__(self) -> tuple[Any, ...]:
        return open_beton_files, (self.paths,)  # each worker process maps the files itself

    def image(self, index: int) -> NDArray[np.uint8]:
        """Return the stored bytes of one sample; see `BetonReader.image`."""
        if not 0 <= index < self.num_samples:
            raise IndexError(f"no sample {index}: the files hold {self.num_samples}")
        return np.frombuffer(self._stored(np.asarray([index]))[0], np.uint8)

    def decoder_input(self, samples: NDArray[np.int64]) -> dict[str, Any]:
        """Return the samples as arguments of `BatchDecoder.submit`: a buffer for each."""
        return {"data": self._stored(samples)}

    def sample_name(self, index: int) -> str:
        """Return the file of a sample and its number in that file, for messages."""
        number = int(np.searchsorted(self._ends, index, "right"))
        before = int(self._ends[number - 1]) if number else 0
        return f"{self.paths[number]}: sample {index - before}"

    def _stored(self, samples: NDArray[np.int64]) -> list[memoryview]:
        numbers = np.searchsorted(self._ends, samples, "right").tolist()
        begin = self.offset[samples]
        end = begin + self.size[samples]
        spans = zip(numbers, begin.tolist(), end.tolist(), strict=True)
        return [self._data[number][first:last] for number, first, last in spans]


def open_beton_files(paths: Sequence[Path]) -> BetonReader | BetonFileSet:
    """Open one file, or several as one, in the order of `paths`.

    Raises:
        BetonError: A file is unreadable, damaged, or no .beton file.
    """
    readers = open_readers(paths)
    return readers[0] if len(readers) == 1 else BetonFileSet(readers)


def open_readers(paths: Sequence[Path]) -> list[BetonReader]:
    """Open every file; each keeps a file descriptor.

    Raises:
        BetonError: A file is unreadable, damaged, or no .beton file.
    """
    allow_open_files(len(paths))
    return [BetonReader(path) for path in paths]


def in_shard_order(readers: Sequence[BetonReader]) -> list[BetonReader]:
    """Sort the shards of one `prepare --shard K/N` by K, as `join` does; leave other files.

    The names need not sort like the numbers: part-10 comes before part-2. Missing shards are
    reported.

    Raises:
        BetonError: A shard is there twice, or beside a file that is no shard.
    """
    shards = [reader for reader in readers if "shard" in reader.info]
    if shards and len(shards) < len(readers):
        whole = next(reader for reader in readers if "shard" not in reader.info)
        raise BetonError(
            f"{whole.path}: is no shard, but {shards[0].path} is, so images may be read twice: "
            "pass the shards or the merged file"
        )
    if not shards or any(_dataset_of(shard) != _dataset_of(shards[0]) for shard in shards):
        return list(readers)
    numbers = [reader.info["shard"][0] for reader in readers]
    (most, times), count = Counter(numbers).most_common(1)[0], readers[0].info["shard"][1]
    if times > 1:
        same = [reader.path for reader in readers if reader.info["shard"][0] == most]
        raise BetonError(f"{same[1]}: is shard {most}, as is {same[0]}: pass each shard once")
    if len(numbers) < count:
        missing = f"{count - len(numbers)} of the {count} shards are missing"
        say_once(f"{readers[0].path}: {missing}")
    return sorted(readers, key=lambda reader: reader.info["shard"][0])


def _dataset_of(shard: BetonReader) -> list[Any]:
    """Return what the shards of one dataset have in common."""
    return [shard.info["shard"][1], shard.info.get("source"), shard.info.get("options")]
