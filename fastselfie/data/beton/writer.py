"""Writes FFCV's `.beton` files in order, resumably, and always to the same bytes.

Worker processes produce the bytes of the images; one process appends them in order. reader.py
describes the format. The rules for the data region are those of `ffcv/memory_allocator.py`.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from fastselfie.data.beton.reader import (
    ALLOCATION,
    FIELD,
    FOOTER,
    FOOTER_SUMMED,
    HEADER,
    IMAGE,
    IMAGE_FIELD,
    IMAGE_MODES,
    INT_FIELD,
    MAGIC,
    VERSION,
    BetonError,
    crc_of,
)

# FFCV's default is 8 MiB. Each page wastes half an image on average: 0.6% of a file with 8 MiB
# pages, 0.15% with 32 MiB. FFCV reads both; its process cache then holds 32 MiB at a time.
DEFAULT_PAGE_SIZE = 32 << 20
MAX_SIDE = 0xFFFF  # width and height are stored in 16 bits
# The journal beside an unfinished file: a head, then one record for each image.
JOURNAL_HEAD = np.dtype([("magic", "S8"), ("page_size", "<u8"), ("num_samples", "<u8"),
                         ("fingerprint", "V32")])  # fmt: skip
RECORD = np.dtype(
    [("source", "<u8"), ("ptr", "<u8"), ("size", "<u8"), ("label", "<i8"), ("width", "<u2"),
     ("height", "<u2"), ("mode", "<u4"), ("crc", "<u4"), ("record_crc", "<u4")])  # fmt: skip
FIELDS = ((IMAGE_FIELD, INT_FIELD), (b"image", b"label"))
CHECKPOINT_BYTES = 64 << 20  # data and journal are synced each time this much was appended


def _align(offset: int, unit: int) -> int:
    return -(-offset // unit) * unit


class BetonWriter:
    """Writes a `.beton` file of one image and one label field, in the order of `append`.

    The bytes depend only on what is appended. Until `finish`, `PATH.partial` holds the data and
    `PATH.journal` a record of each image. If the process is killed at any moment, the same
    constructor call resumes after the last complete image: append from `next_source` on.

    Args:
        path: The file to write.
        num_samples: Reserved samples; `finish(allow_fewer=True)` may leave some unused.
        page_size: In bytes, a power of two, and the size of the largest image that fits. FFCV's own
            writer accepts 2 MiB and more.
        fingerprint: What the bytes depend on (source and options). A partial file with another
            fingerprint is refused.

    Attributes:
        count: Samples appended so far.
        next_source: The index in the source of the next image to append.

    Raises:
        BetonError: The file exists, another process writes it, or the partial file has another
            fingerprint.
        ValueError: `num_samples` or `page_size` is invalid.
    """

    def __init__(self, path: str | os.PathLike[str], num_samples: int,
                 page_size: int = DEFAULT_PAGE_SIZE, *, fingerprint: str = "") -> None:  # fmt: skip
        if not 4096 <= page_size < 1 << 32 or page_size & (page_size - 1):
            raise ValueError(f"page_size {page_size}: give a power of two from 4096 to 2**31")
        if num_samples < 1:
            raise ValueError(f"num_samples {num_samples}: give at least 1")
        self.path = Path(path)
        self.num_samples, self.page_size = num_samples, page_size
        self._row = np.dtype([("f0", IMAGE), ("f1", "<i8")], align=True)
        self._metadata_start = HEADER.itemsize + 2 * FIELD.itemsize
        # FFCV begins its data at a page boundary. Its readers only require that no image crosses a
        # page. So the data begin right after the tables here, which saves 8 MiB for small files.
        self._start = _align(self._metadata_start + num_samples * self._row.itemsize, 64)
        self._end = self._start
        self._partial = self.path.with_name(self.path.name + ".partial")
        self._journal_path = self.path.with_name(self.path.name + ".journal")
        if self.path.exists():
            if not self._partial.exists():  # killed after the rename, before deleting the journal
                self._journal_path.unlink(missing_ok=True)
            raise BetonError(f"{self.path}: exists already; move it away or choose another name")
        self.next_source = 0
        self.count = 0
        digest = hashlib.sha256(fingerprint.encode()).digest()
        head = np.array([(MAGIC, page_size, num_samples, digest)], JOURNAL_HEAD).tobytes()
        self._journal = open(self._journal_path, "a+b")  # noqa: SIM115, closed in close()
        try:
            # Not flock: forked workers would inherit it and keep it after this process is killed.
            fcntl.lockf(self._journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._journal.close()
            raise BetonError(f"{self.path}: another process is writing it; wait for it") from error
        try:
            begun = self._partial.exists()
            self._data = open(self._partial, "r+b" if begun else "w+b")  # noqa: SIM115
            if not begun:
                self._journal.truncate(0)
            self._resume(head)
        except BaseException:
            self.close()
            raise

    def append(self, image: bytes | NDArray[np.uint8], mode: str, width: int, height: int,
               label: int, source: int | None = None) -> None:  # fmt: skip
        """Store one image as the next sample.

        Args:
            image: JPEG bytes (mode jpg), or (height, width, 3) uint8 pixels (mode raw).
            mode: jpg or raw.
            width: In pixels.
            height: In pixels.
            label: The class, or -1 for none.
            source: Index of the image in the source, increasing; by default `next_source`. It
                differs from the number of the sample if images are skipped.

        Raises:
            BetonError: The image is too large for a page or for 16-bit sides, its size does not
                match, or all samples are used.
            ValueError: `mode` is unknown.
        """
        data = image if isinstance(image, bytes) else image.tobytes()
        size = len(data)
        source = self.next_source if source is None else source
        if self.count >= self.num_samples or source < self.next_source:
            self._refuse(source, f"appended after {self.count} of {self.num_samples} samples, next "
                         f"source {self.next_source}")  # fmt: skip
        if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
            self._refuse(source, f"is {width}x{height}, sides are 1 to {MAX_SIDE}; resize it")
        if not 0 < size <= self.page_size:
            self._refuse(source, f"has {size} bytes and a page {self.page_size}; resize it or "
                         "choose a larger page size")  # fmt: skip
        if mode not in IMAGE_MODES:
            raise ValueError(f"mode {mode!r}: give one of {', '.join(IMAGE_MODES)}")
        if mode == "raw" and size != 3 * width * height:
            self._refuse(source, f"has {size} bytes, {width}x{height} RGB has {3 * width * height}")
        ptr = self._end
        if ptr % self.page_size + size > self.page_size:
            ptr = _align(ptr, self.page_size)
        record = np.array([(source, ptr, size, label, width, height, IMAGE_MODES[mode],
                            zlib.crc32(data), 0)], RECORD)  # fmt: skip
        record["record_crc"] = zlib.crc32(record.tobytes()[:-4])
        # All checks come before the first write, so that a refused image leaves no trace.
        self._data.write(bytes(ptr - self._end))
        self._data.write(data)
        self._journal.write(record.tobytes())
        checkpoint = self._end // CHECKPOINT_BYTES != (ptr + size) // CHECKPOINT_BYTES
        self._end, self.count, self.next_source = ptr + size, self.count + 1, source + 1
        if checkpoint:
            self._sync()

    def finish(self, info: Mapping[str, Any] | None = None, *, allow_fewer: bool = False) -> None:
        """Write the tables and rename the file to its final name.

        Args:
            info: JSON metadata, for `BetonReader.info`.
            allow_fewer: Whether fewer than `num_samples` samples are accepted.

        Raises:
            BetonError: Too few samples were appended.
        """
        if self.count == 0 or (self.count < self.num_samples and not allow_fewer):
            raise BetonError(f"{self.path}: {self.count} of {self.num_samples} samples appended")
        self._sync()
        self._journal.seek(JOURNAL_HEAD.itemsize)  # reopening it would release the lock
        records = np.frombuffer(self._journal.read(), RECORD)
        note = json.dumps(dict(info or {}), sort_keys=True).encode()
        begin = _align(self._end, 8)
        raw_body = records["crc"].astype("<u4").tobytes() + note
        body = raw_body.ljust(_align(len(raw_body), 8), b"\0")
        table = np.zeros(self.count, ALLOCATION)
        table["sample_id"] = np.arange(self.count)
        table["ptr"], table["size"] = records["ptr"], records["size"]
        footer = np.zeros(1, FOOTER)
        end = begin + len(body) + FOOTER.itemsize
        front = self._front(records, end)
        footer["body_size"], footer["info_size"], footer["magic"] = len(body), len(note), MAGIC
        summed = footer.tobytes()[:FOOTER_SUMMED]
        footer["tables_crc"] = crc_of((front, body, summed, table.tobytes()))
        self._data.write(bytes(begin - self._end) + body + footer.tobytes() + table.tobytes())
        self._data.seek(0)
        self._data.write(front.ljust(self._start, b"\0"))
        self._data.flush()
        os.fsync(self._data.fileno())
        os.replace(self._partial, self.path)
        folder = os.open(self.path.parent, os.O_RDONLY)
        os.fsync(folder)  # so that the rename survives a power failure
        os.close(folder)
        self._journal_path.unlink(missing_ok=True)  # last: a partial file needs its journal
        self.close()

    def close(self) -> None:
        """Close the files. An unfinished file can be resumed by another writer."""
        for file in (getattr(self, "_data", None), self._journal):
            if file is not None:
                file.close()

    def __enter__(self) -> BetonWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:  # fmt: skip
        self.close()

    def _refuse(self, source: int, what: str) -> NoReturn:
        raise BetonError(f"{self.path}: image {source} of the source {what}")

    def _front(self, records: NDArray[Any], alloc_table_ptr: int) -> bytes:
        """Return header, field descriptors and metadata table."""
        header = np.array([(VERSION, 2, self.page_size, self.count, alloc_table_ptr)], HEADER)
        fields = np.zeros(2, FIELD)
        for field, kind, name in zip(fields, *FIELDS, strict=True):
            field["type_id"] = kind
            field["name"][: len(name)] = np.frombuffer(name, np.uint8)
        metadata = np.zeros(self.count, self._row)
        for key in ("mode", "width", "height"):
            metadata["f0"][key] = records[key]
        metadata["f0"]["data_ptr"], metadata["f1"] = records["ptr"], records["label"]
        return header.tobytes() + fields.tobytes() + metadata.tobytes()

    def _sync(self) -> None:
        """Sync the data, then the journal, so that a durable record always has its data."""
        for file in (self._data, self._journal):
            file.flush()
            os.fsync(file.fileno())

    def _resume(self, head: bytes) -> None:
        """Resume a partial file after its last complete image, or begin a new one."""
        self._journal.seek(0)
        found = self._journal.read()
        if len(found) >= len(head) and found[: len(head)] != head:
            raise BetonError(f"{self._partial}: was begun with another source or other options; "
                             f"use those, or delete it and {self._journal_path.name}")  # fmt: skip
        records = np.frombuffer(found, RECORD, max(len(found) - len(head), 0) // RECORD.itemsize,
                                min(len(head), len(found)))  # fmt: skip
        length = os.fstat(self._data.fileno()).st_size
        columns = [records[key].tolist() for key in ("ptr", "size", "source", "crc", "record_crc")]
        bare = records.tobytes()
        for k, (ptr, size, source, crc, record_crc) in enumerate(zip(*columns, strict=True)):
            at = k * RECORD.itemsize
            summed = zlib.crc32(bare[at : at + RECORD.itemsize - 4])
            if summed != record_crc or ptr + size > length:
                break
            # Only data written after the last checkpoint may be incomplete.
            if ptr > length - 2 * CHECKPOINT_BYTES:
                self._data.seek(ptr)
                if zlib.crc32(self._data.read(size)) != crc:
                    break
            self._end, self.count, self.next_source = ptr + size, self.count + 1, source + 1
        self._journal.truncate(len(head) + self.count * RECORD.itemsize if self.count else 0)
        if not self.count:
            self._journal.write(head)  # the file is in append mode: this goes to its end
        self._data.truncate(self._end)  # also removes the tables of an interrupted finish
        self._data.seek(self._end)
