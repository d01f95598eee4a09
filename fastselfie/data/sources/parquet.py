"""Opens parquet files as Hugging Face's datasets write them: an image and a label column.

Needs pyarrow, which is imported where it is used. A whole row group is read for one image. This is
fast in order, as `fastselfie prepare` reads, and slow in random order.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn

import numpy as np

from fastselfie.data.draws import IntArray
from fastselfie.data.sources.base import UNLABELLED, Source
from fastselfie.data.sources.parquet_columns import Columns, choose_columns, holds_integers
from fastselfie.data.sources.shard_checks import labels_and_classes, require_whole, unread_shards
from fastselfie.data.sources.shards import files_of, files_of_part
from fastselfie.errors import UserError
from fastselfie.system.console import say_once

_BATCH_ROWS = 16  # so few that the largest photographs fit in one Arrow array, 2 GiB


@dataclass(frozen=True)
class ParquetSource(Source):
    """Encoded images in a column of parquet files.

    Attributes:
        files: Paths of the files.
        column: Name of the image column.
        place: (n, 3) int64: index into `files`, row group, row in the group.
        labels: (n,) int64.
        classes: Names of the classes.
    """

    files: Sequence[str]
    column: str
    place: IntArray
    labels: IntArray
    classes: Sequence[str]
    _per_image = ("labels", "place")

    def name(self, index: int) -> str:
        file, group, row = (int(v) for v in self.place[index])
        return f"{self.files[file]}: row group {group}, row {row}"

    def encoded(self, index: int) -> bytes:
        file, group, row = (int(v) for v in self.place[index])
        return image_bytes(_row_group(self.files[file], group, self.column)[row], self.name(index))


def image_bytes(cell: Any, name: str) -> bytes:
    """Return the encoded image in a cell of the image column.

    Args:
        cell: A pyarrow scalar, of bytes or of Hugging Face's struct of bytes and path.
        name: What a message calls the image.

    Raises:
        UserError: There are no bytes.
    """
    value = cell.as_py()
    data = value.get("bytes") if isinstance(value, dict) else value
    if isinstance(data, bytes):
        return data
    link = value.get("path") if isinstance(value, dict) else None
    path = f", only the path {link}" if link else ""
    raise UserError(f"{name}: holds no image bytes{path}: write the file with image bytes")


def is_parquet(path: Path) -> bool:
    """Return whether `path` is a .parquet file, or a folder with some, directly or in data/."""
    if path.is_dir():
        return bool(files_of(_folder(path), ".parquet"))
    return path.suffix.lower() == ".parquet" or bool(unread_shards(path, ".parquet"))


def open_parquet(path: Path, part: str, beside_train: bool = False) -> ParquetSource | None:
    """Open the rows of one part. Without a label column the images have no labels.

    Hugging Face's metadata names the columns and the classes. Ignored columns are reported.

    Args:
        path: A file, or a folder of files.
        part: train, or one of TEST_NAMES.
        beside_train: Whether a dataset without parts is already in use as the training part.

    Returns:
        The images; None if there is no such part.

    Raises:
        UserError: A file is unreadable, its columns are ambiguous, a label is missing, or the files
            differ in columns or classes.
    """
    files = files_of_part(_folder(path), ".parquet", part, beside_train)
    if files is None:
        return None
    require_whole(_folder(path), files, ".parquet")
    names = [str(file) for file in files]
    return source_of_files(path, part, names, (scan_file(name, name) for name in names))


class ScannedFile(NamedTuple):
    """What one file holds, beside its images.

    Attributes:
        columns: Which columns are read.
        groups: The number of rows in each row group.
        labels: (rows,) int64, -1 where a label is missing; None without a label column.
    """

    columns: Columns
    groups: Sequence[int]
    labels: IntArray | None


def scan_file(file: str | BinaryIO, name: str) -> ScannedFile:
    """Read the metadata and the labels of a parquet file.

    Args:
        file: Its path, or the open file.
        name: What messages call it.

    Raises:
        UserError: It is unreadable, or its columns are ambiguous.
    """
    reader = _open(file, name)
    columns = choose_columns(name, reader.schema_arrow)
    groups = [reader.metadata.row_group(k).num_rows for k in range(reader.num_row_groups)]
    labels = None if columns.label is None else _read_labels(reader, name, columns.label)
    return ScannedFile(columns, groups, labels)


def source_of_files(
    dataset: object, part: str, files: Sequence[str], scanned: Iterable[ScannedFile]
) -> ParquetSource:
    """Put together the rows of all files, and report ignored columns.

    Args:
        dataset: What messages call the dataset.
        part: train, or one of TEST_NAMES.
        files: Paths of the files.
        scanned: What each holds, in that order.

    Raises:
        UserError: There are no rows, a label is missing, or the files differ in columns or classes.
    """
    first: tuple[str, str | None] | None = None
    named_in = files[0]
    names: Sequence[str] = ()
    places: list[IntArray] = []
    labels: list[IntArray] = []
    for number, (file, found) in enumerate(zip(files, scanned, strict=True)):
        columns = found.columns
        image, label = columns.image, columns.label
        first = first or (image, label)
        if first != (image, label):
            raise UserError(
                f"{file}: its columns of images and labels are {image} and {label or 'none'}, "
                f"those of {files[0]} are {first[0]} and {first[1] or 'none'}: write both with the "
                "same columns"
            )
        if names and columns.classes and columns.classes != names:
            lists = _listed(columns.classes), _listed(names)
            raise UserError(f"{file}: its classes are {lists[0]}, those of {named_in} are "
                            f"{lists[1]}: write both with the same list")  # fmt: skip
        if columns.classes and not names:
            named_in, names = file, columns.classes
        for group, count in enumerate(found.groups):
            rows = np.arange(count, dtype=np.int64)
            places.append(np.stack([np.full(count, number), np.full(count, group), rows], axis=1))
        if found.labels is not None:
            labels.append(found.labels)
        if columns.ignored:
            say_once(f"{dataset}: {columns.ignored}")
    place = np.concatenate(places) if places else np.empty((0, 3), dtype=np.int64)
    if first is None or len(place) == 0:
        raise UserError(f"{dataset}: holds no rows")
    zeros = np.zeros(len(place), dtype=np.int64)
    source = ParquetSource(files, first[0], place, zeros, UNLABELLED)
    if not labels:
        return source
    found_labels = np.concatenate(labels)
    numbers, classes = labels_and_classes(found_labels, names, dataset, part, source.name)
    return replace(source, labels=numbers, classes=classes)


def _folder(path: Path) -> Path:
    """Return the folder of the files: Hugging Face repositories keep them in data/."""
    inner = path / "data"
    return inner if inner.is_dir() and not files_of(path, ".parquet") else path


def _open(file: str | BinaryIO, name: str) -> Any:
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UserError(f"{name}: needs pyarrow: pip install 'fastselfie[parquet]'") from error
    try:
        return pq.ParquetFile(file)
    except Exception as error:  # pyarrow raises many types
        _fail(f"{name}: not a parquet file", error)


def _fail(what: str, error: Exception) -> NoReturn:
    if isinstance(error, UserError):  # from the file object that pyarrow reads
        raise error
    raise UserError(f"{what} ({' '.join(str(error).split())}): download it again") from error


@functools.lru_cache(maxsize=2)
def _row_group(path: str, group: int, column: str) -> Any:
    """Read one column of a row group. A batch of images in order needs at most two."""
    return read_row_group(path, path, group, column)


def read_row_group(file: str | BinaryIO, name: str, group: int, column: str) -> Any:
    """Read one column of a row group: (rows,), a pyarrow ChunkedArray.

    Args:
        file: The path of the file, or the open file.
        name: What messages call it.
        group: The number of the row group.
        column: The name of the column.

    Raises:
        UserError: It is damaged.
    """
    reader = _open(file, name)
    import pyarrow as pa

    try:
        # In batches, because a row group may be too large for one Arrow array. Without threads,
        # because a thread pool does not survive the fork of a data-loading worker.
        batches = reader.iter_batches(
            batch_size=_BATCH_ROWS, row_groups=[group], columns=[column], use_threads=False
        )
        kind = reader.schema_arrow.field(column).type
        return pa.chunked_array([batch.column(0) for batch in batches], kind)
    except Exception as error:  # pyarrow raises many types
        _fail(f"{name}: row group {group} cannot be read", error)


def _read_labels(reader: Any, file: str, column: str) -> IntArray:
    """Read a column of integers: (rows,) int64, -1 where a label is missing."""
    import pyarrow as pa

    kind = reader.schema_arrow.field(column).type
    if pa.types.is_null(kind):
        return np.full(reader.metadata.num_rows, -1, dtype=np.int64)
    if not holds_integers(kind):
        raise UserError(
            f"{file}: column {column} holds {kind}, not class numbers from 0 up: write it as "
            "integers (ClassLabel of Hugging Face's datasets)"
        )
    try:
        values = reader.read(columns=[column], use_threads=False).column(0)
        numbers = values.cast(pa.int64()).fill_null(-1).to_numpy()
    except (pa.ArrowException, OSError, UserError) as error:
        _fail(f"{file}: column {column} cannot be read", error)
    labels: IntArray = np.maximum(numbers, -1)
    return labels


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f", ... ({len(names)})" if len(names) > 10 else "")
