"""Reads and checks FFCV's `.beton` dataset files with NumPy alone.

    FILE     header | field descriptors | metadata table | data | trailer | allocation table
    data     one allocation for each image; none crosses a multiple of page_size in the file
    trailer  our extension: the CRC-32 of each image and of the tables, and JSON metadata. Stock
             FFCV reads the allocation table from `alloc_table_ptr` to the end of the file, so
             nothing may follow it. FFCV never reads what is just before it: so the trailer is there

The format is version 2 of FFCV 1.0.2, taken from its source: structures in `ffcv/types.py`, image
metadata in `ffcv/fields/rgb_image.py`, writing in `ffcv/writer.py` and `ffcv/memory_allocator.py`,
reading in `ffcv/reader.py` and `ffcv/memory_managers/`. All integers are little-endian.
Shapes: n samples. Sizes are in bytes; offsets are bytes from the start of the file.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fastselfie.errors import UserError

VERSION = 2
IMAGE_MODES = {"jpg": 0, "raw": 1}

_Bytes = NDArray[np.uint8]

# FFCV declares the header and the metadata row with align=True, and the row of an image without.
# The same flags here give the same padding for any order of fields.
HEADER = np.dtype(
    [("version", "<u2"), ("num_fields", "<u2"), ("page_size", "<u4"), ("num_samples", "<u8"),
     ("alloc_table_ptr", "<u8")], align=True)  # fmt: skip
FIELD = np.dtype([("type_id", "u1"), ("name", "u1", (16,)), ("arguments", "u1", (1024,))])
ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])
IMAGE = np.dtype([("mode", "u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
_SPAN = np.dtype([("ptr", "<u8"), ("size", "<u8")])
INT_FIELD, IMAGE_FIELD = 1, 2
# type_id -> one sample's metadata: Float, Int, RGBImage, Bytes, NDArray, JSON, TorchTensor.
FIELD_METADATA: dict[int, DTypeLike] = {
    0: "<f8", INT_FIELD: "<i8", IMAGE_FIELD: IMAGE, 3: _SPAN, 4: "<u8", 5: _SPAN, 6: "<u8",
}  # fmt: skip
# Names of int fields that hold labels, the most likely first; and names of those that never do.
_LABEL_NAMES = (
    "label", "labels", "fine_label", "target", "targets", "class", "class_id", "class_idx", "cls",
    "category", "y",
)  # fmt: skip
_NUMBER_NAMES = ("index", "idx", "ind", "image_id", "sample_id", "sample_index")

MAGIC = b"FSELFIE1"
# The footer of the trailer, right before the allocation table. tables_crc covers everything except
# the images: header, field descriptors, metadata table, trailer up to the crc, allocation table.
FOOTER = np.dtype(
    [("body_size", "<u8"), ("info_size", "<u8"), ("tables_crc", "<u4"), ("pad", "<u4"),
     ("magic", "S8")])  # fmt: skip
FOOTER_SUMMED = 16  # bytes of it that tables_crc covers


class BetonError(UserError):
    """A .beton file is invalid. The message names the file, the sample, and what to do."""


def crc_of(parts: Iterable[bytes | memoryview]) -> int:
    """Return the CRC-32 of the concatenated parts."""
    crc = 0
    for part in parts:
        crc = zlib.crc32(part, crc)
    return crc


class BetonReader:
    """The checked tables of a `.beton` file as arrays, and the memory-mapped file.

    The constructor checks that each image is inside the file and belongs to its sample, and that
    a raw image has width x height x 3 bytes. It does not check JPEG data: `verify` does.

    Args:
        path: The file.

    Attributes:
        path: The file.
        page_size: In bytes.
        num_samples: n.
        field_names: Names of all fields.
        image_fields: Names of the image fields.
        image_field: The image field that is read: the one called image, else the first.
        data: (file size,) uint8, read-only: the memory map. It is released with its last array.
        offset: (n,) uint64. Image i is data[offset[i]:offset[i] + size[i]].
        size: (n,) uint64.
        mode: (n,) uint8, one of IMAGE_MODES: 0 is JPEG, 1 is raw pixels (height, width, 3).
        width: (n,) uint16, in pixels, from the table; the header of a JPEG may differ.
        height: (n,) uint16, like `width`.
        label: (n,) int64. All -1 unless `label_fields` has exactly one name.
        label_fields: Names of the int fields that may hold the labels.
        crc32: (n,) uint32 of each image's bytes; None in files of other writers.
        info: JSON metadata of our writer; {} in files of other writers.

    Raises:
        BetonError: The file is unreadable, damaged, or no .beton file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            with open(self.path, "rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # mmap raises ValueError for an empty file
            reason = error.strerror if isinstance(error, OSError) else "it is empty"
            way_out = "check the path or prepare it again"
            if isinstance(error, OSError) and error.errno == errno.EMFILE:
                way_out = "merge files with `fastselfie join`, or raise the limit (ulimit -n)"
            self._fail(f"cannot be read ({reason}); {way_out}", error)
        self.data: _Bytes = np.frombuffer(self._map, np.uint8)

        header = self._table(HEADER, 0, 1, "header")[0]
        if header["version"] != VERSION:
            self._fail(f"is not a .beton file of version {VERSION} (its version field says "
                       f"{header['version']}); prepare it again")  # fmt: skip
        self.page_size = int(header["page_size"])
        self.num_samples = int(header["num_samples"])
        end = int(header["alloc_table_ptr"])  # of everything but the allocation table
        if not self.num_samples:
            self._fail("holds no samples; prepare it again")
        if self.page_size < 1 or self.page_size & (self.page_size - 1):
            self._fail(f"has a page size of {self.page_size}, no power of two; prepare it again")

        fields = self._table(FIELD, HEADER.itemsize, int(header["num_fields"]), "field descriptors")
        metadata_start = HEADER.itemsize + fields.nbytes
        row = self._metadata_type(fields)
        metadata = self._table(row, metadata_start, self.num_samples, "metadata table")
        metadata_end = metadata_start + metadata.nbytes
        table_bytes = len(self.data) - end
        if end < metadata_end or table_bytes < 0 or table_bytes % ALLOCATION.itemsize:
            self._fail("is cut short or damaged (no allocation table at its end); prepare it again")
        allocations = self._table(ALLOCATION, end, table_bytes // ALLOCATION.itemsize, "table")

        self.crc32: NDArray[np.uint32] | None = None
        self.info: dict[str, Any] = {}
        data_end = self._read_trailer(metadata_end, end)
        types = [int(type_id) for type_id in fields["type_id"]]
        images = {self.field_names[k]: k for k, kind in enumerate(types) if kind == IMAGE_FIELD}
        self.image_fields = list(images)
        self.image_field = "image" if "image" in images else self.image_fields[0]
        image = metadata[f"f{images[self.image_field]}"]
        # Views of the memory map: their pages are shared by all processes that read the file.
        self.mode: _Bytes = image["mode"]
        self.width: NDArray[np.uint16] = image["width"]
        self.height: NDArray[np.uint16] = image["height"]
        self.offset: NDArray[np.uint64] = image["data_ptr"]
        ints = {self.field_names[k]: k for k, type_id in enumerate(types) if type_id == INT_FIELD}
        self.label_fields = _label_fields(list(ints))
        self.label: NDArray[np.int64] = np.full(self.num_samples, -1, np.int64)
        if len(self.label_fields) == 1:
            self.label[:] = metadata[f"f{ints[self.label_fields[0]]}"]
        self.size = self._sizes(allocations)
        self._check_images(metadata_end, data_end)

    def __len__(self) -> int:
        return self.num_samples

    def __reduce__(self) -> tuple[type[BetonReader], tuple[Path]]:
        return BetonReader, (self.path,)  # each worker process maps the file itself

    def image(self, index: int) -> _Bytes:
        """Return the stored bytes of one sample.

        Args:
            index: 0 <= index < n.

        Returns:
            (size,) uint8, a read-only view.

        Raises:
            IndexError: There is no such sample.
        """
        if not 0 <= index < self.num_samples:
            raise IndexError(f"{self.path}: no sample {index}, it holds {self.num_samples}")
        offset = int(self.offset[index])
        return self.data[offset : offset + int(self.size[index])]

    @property
    def paths(self) -> tuple[Path, ...]:
        """The file, as the only one of a set; see `BetonFileSet`."""
        return (self.path,)

    def decoder_input(self, samples: NDArray[np.int64]) -> dict[str, Any]:
        """Return the samples as arguments of `BatchDecoder.submit`: one buffer with offsets."""
        return {
            "data": self.data.data,
            "offsets": self.offset[samples],
            "sizes": self.size[samples],
        }

    def sample_name(self, index: int) -> str:
        """Return what a message calls a sample."""
        return f"{self.path}: sample {index}"

    def _fail(self, what: str, cause: BaseException | None = None) -> NoReturn:
        raise BetonError(f"{self.path}: {what}") from cause

    def _table(self, dtype: np.dtype[Any], offset: int, count: int, what: str) -> NDArray[Any]:
        """Return a (count,) view of `dtype` at `offset`; fail if the file is too short for it."""
        if offset + count * dtype.itemsize > len(self.data):
            self._fail(f"is cut short or damaged (its {what} does not fit in); prepare it again")
        return np.frombuffer(self._map, dtype, count, offset)

    def _metadata_type(self, fields: NDArray[Any]) -> np.dtype[Any]:
        """Return the dtype of a metadata row, with fields f0, f1, ...; set `field_names`."""
        self.field_names: list[str] = []
        columns: list[tuple[str, DTypeLike]] = []
        for k, field in enumerate(fields):
            name = field["name"].tobytes().split(b"\0")[0].decode("ascii", "backslashreplace")
            kind = int(field["type_id"])
            if kind not in FIELD_METADATA:
                self._fail(f"field {name!r} has type {kind}, which no field of FFCV has; write the "
                           "file again without it")  # fmt: skip
            self.field_names.append(name)
            columns.append((f"f{k}", FIELD_METADATA[kind]))
        if IMAGE_FIELD not in fields["type_id"]:
            self._fail("has no RGBImageField; write it again with one")
        return np.dtype(columns, align=True)

    def _sizes(self, allocations: NDArray[Any]) -> NDArray[np.uint64]:
        """Look up the size of each image in the allocation table by its pointer: (n,) uint64."""
        sizes: NDArray[np.uint64] = allocations["size"]
        if len(allocations) == self.num_samples and sizes.all():
            own = allocations["sample_id"] == np.arange(self.num_samples, dtype=np.uint64)
            if own.all() and np.array_equal(allocations["ptr"], self.offset):
                return sizes  # in the order of the samples, as `BetonWriter` writes them
        # An empty allocation (of a bytes field) shares its pointer with the next one.
        allocations = allocations[allocations["size"] > 0]
        ptrs = np.ascontiguousarray(allocations["ptr"])
        if not np.all(ptrs[1:] >= ptrs[:-1]):  # stock FFCV writes them in the order of its workers
            order = np.argsort(ptrs, kind="stable")
            allocations, ptrs = allocations[order], ptrs[order]
        if len(ptrs) == 0 or np.any(allocations["sample_id"] >= self.num_samples):
            self._fail("its header and its allocation table disagree on the number of samples; "
                       "prepare it again")  # fmt: skip
        slot = np.minimum(np.searchsorted(ptrs, self.offset), len(ptrs) - 1)
        found = allocations[slot]
        self._check(found["ptr"] == self.offset, "its pointer is not in the allocation table")
        own = found["sample_id"] == np.arange(self.num_samples, dtype=np.uint64)
        self._check(own, "its pointer belongs to another sample")
        return np.ascontiguousarray(found["size"])

    def _check_images(self, start: int, end: int) -> None:
        self._check(self.mode <= 1, "its mode is neither jpg nor raw")
        self._check((self.width > 0) & (self.height > 0), "its width or height is 0")
        # size <= end is checked first, so that end - size cannot wrap around.
        inside = (self.size <= end) & (self.offset >= start)
        inside &= self.offset <= np.uint64(end) - np.minimum(self.size, np.uint64(end))
        self._check(inside, "its bytes lie outside the data region")
        pixels = self.width.astype(np.uint64) * self.height.astype(np.uint64) * np.uint64(3)
        self._check((self.mode == 0) | (self.size == pixels), "its raw size is not 3 x w x h")

    def _check(self, good: NDArray[np.bool_], what: str) -> None:
        if not good.all():
            self._fail(f"sample {int(np.argmin(good))}: {what}; the file is damaged, prepare it "
                       f"again ({int((~good).sum())} such samples)")  # fmt: skip

    def _read_trailer(self, metadata_end: int, end: int) -> int:
        """Return where the data ends; set `crc32` and `info` if the file has our trailer."""
        if end - FOOTER.itemsize < metadata_end:
            return end
        footer = self._table(FOOTER, end - FOOTER.itemsize, 1, "trailer")[0]
        if footer["magic"] != MAGIC:
            return end
        begin = end - FOOTER.itemsize - int(footer["body_size"])
        info_end = begin + 4 * self.num_samples + int(footer["info_size"])
        body_end = end - FOOTER.itemsize
        file = memoryview(self._map)
        trailer = file[max(begin, 0) : body_end + FOOTER_SUMMED]
        tables = (file[:metadata_end], trailer, file[end:])
        whole = metadata_end <= begin and info_end <= body_end
        if not whole or crc_of(tables) != footer["tables_crc"]:
            self._fail("its tables do not match their checksum; copy or prepare it again")
        self.crc32 = self._table(np.dtype("<u4"), begin, self.num_samples, "trailer")
        self.info = json.loads(bytes(self.data[begin + 4 * self.num_samples : info_end]))
        return begin


def _label_fields(names: list[str]) -> list[str]:
    """Return the int field with a known label name, else all that do not number the samples."""
    for known in _LABEL_NAMES:
        found = [name for name in names if name.lower() == known]
        if found:
            return found[:1]
    return [name for name in names if name.lower() not in _NUMBER_NAMES]
