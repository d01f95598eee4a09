"""Parquet files as Hugging Face's datasets write them: an image and a label column.

Needs pyarrow, imported where it is used. A row group is read when an image of it is asked for:
good for going through a set in order, as `fastselfie prepare` does, slow in random order.
"""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fastselfie.data.images import UNLABELLED, decode_image
from fastselfie.data.shards import files_of_part
from fastselfie.errors import UserError
from fastselfie.rng import IntArray

_IMAGE_COLUMNS = ("image", "img", "jpg")
_BATCH_ROWS = 16  # of these the largest photographs fit in one of Arrow's arrays, 2 GiB
_LABEL_COLUMNS = ("label", "labels", "fine_label", "cls")


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
            raise UserError(f"{self.name(index)}: holds no image bytes: write the file with them")
        return data

    def select(self, indices: IntArray) -> ParquetSource:
        place, labels = self.place[indices], self.labels[indices]
        return ParquetSource(self.files, self.column, place, labels, self.classes)


def is_parquet(path: Path) -> bool:
    """Whether `path` is a .parquet file, or a folder of them, also one called data inside it."""
    return any(_folder(path).glob("*.parquet")) if path.is_dir() else path.suffix == ".parquet"


def open_parquet(path: Path, part: str, beside_train: bool = False) -> ParquetSource | None:
    """The rows of `part`; None if there is no such part. Without a label column: one class.

    Raises:
        UserError: pyarrow is not installed, a damaged file, no image column, or a missing label.
    """
    files = files_of_part(_folder(path), ".parquet", part, beside_train)
    if files is None:
        return None
    column, places, labels = "", [], []
    names: Sequence[str] = ()
    for number, file in enumerate(files):
        reader = _open(str(file))
        schema = reader.schema_arrow
        own = next((name for name in _IMAGE_COLUMNS if name in schema.names), None)
        if own is None or own != (column or own):
            found = ", ".join(schema.names)
            raise UserError(f"{file}: no image column {column or _IMAGE_COLUMNS[0]} among {found}")
        column = own
        for group in range(reader.num_row_groups):
            count = reader.metadata.row_group(group).num_rows
            rows = np.arange(count, dtype=np.int64)
            places.append(np.stack([np.full(count, number), np.full(count, group), rows], axis=1))
        label = next((name for name in _LABEL_COLUMNS if name in schema.names), None)
        if label is not None:
            names = names or _class_names(schema, label)
            labels.append(_labels(reader, file, label))
    place = np.concatenate(places) if places else np.empty((0, 3), dtype=np.int64)
    if len(place) == 0:
        raise UserError(f"{path}: holds no rows")
    numbers = np.concatenate(labels) if labels else np.zeros(len(place), dtype=np.int64)
    if len(numbers) != len(place):
        raise UserError(f"{path}: some of its files have a label column and some have none")
    if not labels:
        classes: Sequence[str] = UNLABELLED
    else:
        most = int(numbers.max()) + 1
        classes = names if len(names) >= most else [str(i) for i in range(most)]
    return ParquetSource([str(file) for file in files], column, place, numbers, classes)


def _folder(path: Path) -> Path:
    """A repository of Hugging Face keeps its files in data/."""
    inner = path / "data"
    return inner if inner.is_dir() and not any(path.glob("*.parquet")) else path


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
    values = reader.read(columns=[column], use_threads=False).column(0)
    try:
        if values.null_count:
            raise ValueError("some are null")
        labels = np.asarray(values.to_numpy())
        if not np.issubdtype(labels.dtype, np.integer) or (labels < 0).any():
            raise ValueError("they must be integers from 0 up")
    except ValueError as error:
        raise UserError(f"{file}: column {column} has no usable labels: {error}") from error
    return labels.astype(np.int64)


def _class_names(schema: Any, column: str) -> Sequence[str]:
    """From the note that Hugging Face's datasets leave in the schema, else none."""
    note = (schema.metadata or {}).get(b"huggingface", b"{}")
    try:
        return list(json.loads(note)["info"]["features"][column]["names"])
    except (ValueError, KeyError, TypeError):
        return ()
