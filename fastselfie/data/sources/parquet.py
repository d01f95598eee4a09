"""Parquet files as Hugging Face's datasets write them: an image and a label column.

Needs pyarrow, imported where it is used. A row group is read when an image of it is asked for:
good for going through a set in order, as `fastselfie prepare` does, slow in random order.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fastselfie.data.random import IntArray
from fastselfie.data.sources.base import UNLABELLED, decode_image
from fastselfie.data.sources.parquet_columns import choose_columns, holds_integers
from fastselfie.data.sources.shard_checks import labels_and_classes, require_whole, unread_shards
from fastselfie.data.sources.shards import files_of, files_of_part
from fastselfie.errors import UserError
from fastselfie.system.console import say_once

_BATCH_ROWS = 16  # of these the largest photographs fit in one of Arrow's arrays, 2 GiB


@dataclass(frozen=True)
class ParquetSource:
    """Encoded images in a column of parquet files.

    place: (n, 3) int64: the file, its row group, and the row in that
    """

    files: Sequence[str]
    column: str
    place: IntArray
    labels: IntArray
    classes: Sequence[str]

    def __len__(self) -> int:
        return len(self.place)

    def name(self, index: int) -> str:
        file, group, row = (int(v) for v in self.place[index])
        return f"{self.files[file]}: row group {group}, row {row}"

    def image(self, index: int) -> Image.Image:
        return decode_image(io.BytesIO(self.encoded(index)), self.name(index))

    def encoded(self, index: int) -> bytes:
        file, group, row = (int(v) for v in self.place[index])
        value = _row_group(self.files[file], group, self.column)[row].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            away = value.get("path") if isinstance(value, dict) else None
            path = f", only the path {away}" if away else ""
            raise UserError(
                f"{self.name(index)}: holds no image bytes{path}: write the file with them"
            )
        return data

    def select(self, indices: IntArray) -> ParquetSource:
        place, labels = self.place[indices], self.labels[indices]
        return ParquetSource(self.files, self.column, place, labels, self.classes)


def is_parquet(path: Path) -> bool:
    """Whether `path` is a .parquet file, or a folder of them, also one called data inside it."""
    if path.is_dir():
        return bool(files_of(_folder(path), ".parquet"))
    return path.suffix.lower() == ".parquet" or bool(unread_shards(path, ".parquet"))


def open_parquet(path: Path, part: str, beside_train: bool = False) -> ParquetSource | None:
    """The rows of `part`; None if there is no such part. Without a label column: one class.

    The note that Hugging Face's datasets leave in the schema tells which columns hold the image
    and the label, and the names of the classes. What is left out is said.

    Raises:
        UserError: pyarrow is not installed, a damaged file, no image column or several, a missing
            label, or files that name other columns or classes.
    """
    files = files_of_part(_folder(path), ".parquet", part, beside_train)
    if files is None:
        return None
    require_whole(_folder(path), files, ".parquet")
    first: tuple[str, str | None] | None = None
    named_in = files[0]
    names: Sequence[str] = ()
    places: list[IntArray] = []
    labels: list[IntArray] = []
    for number, file in enumerate(files):
        reader = _open(str(file))
        columns = choose_columns(file, reader.schema_arrow)
        image, label = columns.image, columns.label
        first = first or (image, label)
        if first != (image, label):
            raise UserError(
                f"{file}: its columns of images and labels are {image} and {label or 'none'}, "
                f"those of {files[0]} are {first[0]} and {first[1] or 'none'}: write both alike"
            )
        if names and columns.classes and columns.classes != names:
            raise UserError(
                f"{file}: its classes are {_listed(columns.classes)}, those of {named_in} are "
                f"{_listed(names)}: write both with one list"
            )
        if columns.classes and not names:
            named_in, names = file, columns.classes
        for group in range(reader.num_row_groups):
            count = reader.metadata.row_group(group).num_rows
            rows = np.arange(count, dtype=np.int64)
            places.append(np.stack([np.full(count, number), np.full(count, group), rows], axis=1))
        if label is not None:
            labels.append(_labels(reader, file, label))
        if columns.left_out:
            say_once(f"{path}: {columns.left_out}")
    place = np.concatenate(places) if places else np.empty((0, 3), dtype=np.int64)
    if first is None or len(place) == 0:
        raise UserError(f"{path}: holds no rows")
    none = np.zeros(len(place), dtype=np.int64)
    source = ParquetSource([str(file) for file in files], first[0], place, none, UNLABELLED)
    if not labels:
        return source
    numbers, classes = labels_and_classes(np.concatenate(labels), names, path, part, source.name)
    return replace(source, labels=numbers, classes=classes)


def _folder(path: Path) -> Path:
    """A repository of Hugging Face keeps its files in data/."""
    inner = path / "data"
    return inner if inner.is_dir() and not files_of(path, ".parquet") else path


def _open(path: str) -> Any:
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UserError(f"{path}: needs pyarrow: pip install 'fastselfie[parquet]'") from error
    try:
        return pq.ParquetFile(path)
    except Exception as error:  # pyarrow's are of many kinds
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not a parquet file ({reason}): fetch it again") from error


@functools.lru_cache(maxsize=2)
def _row_group(path: str, group: int, column: str) -> Any:
    """(rows,) of one column. Two are kept: a batch of images in order touches no more."""
    reader = _open(path)
    import pyarrow as pa

    try:
        # In batches, since a row group may be more than one of Arrow's arrays holds.
        # One thread: a pool of threads would not survive a fork of the data loader's workers.
        batches = reader.iter_batches(
            batch_size=_BATCH_ROWS, row_groups=[group], columns=[column], use_threads=False
        )
        kind = reader.schema_arrow.field(column).type
        return pa.chunked_array([batch.column(0) for batch in batches], kind)
    except Exception as error:  # pyarrow's are of many kinds
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: row group {group} cannot be read ({reason}): fetch it") from error


def _labels(reader: Any, file: Path, column: str) -> IntArray:
    """(rows,) of a column of integers; -1 where there is none."""
    import pyarrow as pa

    kind = reader.schema_arrow.field(column).type
    if pa.types.is_null(kind):
        return np.full(reader.metadata.num_rows, -1, dtype=np.int64)
    if not holds_integers(kind):
        raise UserError(
            f"{file}: column {column} holds {kind}, no numbers of classes from 0 up: write it as "
            "integers (ClassLabel of Hugging Face's datasets)"
        )
    try:
        values = reader.read(columns=[column], use_threads=False).column(0)
        numbers = values.cast(pa.int64()).fill_null(-1).to_numpy()
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{file}: column {column} cannot be read ({reason}): fetch it") from error
    labels: IntArray = np.maximum(numbers, -1)
    return labels


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f", ... ({len(names)})" if len(names) > 10 else "")
