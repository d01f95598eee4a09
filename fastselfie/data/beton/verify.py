"""Checks the images of a `.beton` file: checksums, JPEG headers, page boundaries."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Iterator

import numpy as np

from fastselfie.data.beton.reader import IMAGE_MODES, BetonError, BetonReader


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Return (width, height) in the frame header of a JPEG, or None if it has none."""
    at = 2
    while data[:2] == b"\xff\xd8" and at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(data[at + 7 : at + 9], "big"), int.from_bytes(
                data[at + 5 : at + 7], "big"
            )
        # A fill byte has no length; every other marker before the frame header has one.
        at += 1 if marker == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def verify(path: str | os.PathLike[str], samples: Iterable[int] | None = None) -> Iterator[str]:
    """Check a whole file: its tables, the checksum of each image, and each JPEG's markers.

    The checks are: each image matches its checksum if the file has checksums, no image crosses a
    page, and each JPEG has an end marker and a frame header with the size in the table.

    Args:
        path: The file.
        samples: The samples to check; None for all.

    Yields:
        One line for each problem.
    """
    try:
        reader = BetonReader(path)
    except BetonError as error:
        yield str(error)
        return
    last = reader.offset + reader.size - np.uint64(1)
    crosses = reader.offset // np.uint64(reader.page_size) != last // np.uint64(reader.page_size)
    for k in range(reader.num_samples) if samples is None else samples:
        data, where = reader.image(k).tobytes(), f"{path}: sample {k}"
        if reader.crc32 is not None and zlib.crc32(data) != reader.crc32[k]:
            yield f"{where}: its bytes do not match their checksum; copy or prepare the file again"
        elif reader.mode[k] == IMAGE_MODES["jpg"]:
            size = _jpeg_size(data)
            if size != (reader.width[k], reader.height[k]):
                yield f"{where}: its JPEG says {size}, the table ({reader.width[k]}, " \
                      f"{reader.height[k]}); prepare the file again"  # fmt: skip
            elif not data.endswith(b"\xff\xd9"):
                yield f"{where}: its JPEG has no end marker, it is cut short; prepare it again"
        if crosses[k]:
            yield f"{where}: crosses a page, FFCV cannot read it with os_cache=False"
