""".beton files that are damaged, cut or no such files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.beton_files import METADATA, make_samples, strip_trailer, write

from fastselfie.data.beton.reader import BetonError, BetonReader
from fastselfie.data.beton.verify import verify


def tables(reader: BetonReader) -> tuple[object, ...]:
    fields = (reader.offset, reader.size, reader.mode, reader.width, reader.height, reader.label)
    return (*(f.tolist() for f in fields), reader.page_size, reader.field_names)


@pytest.mark.parametrize("content", [b"", b"\2", b"\0" * 24, b"\xff" * 24, b"no beton file" * 99])
def test_not_a_beton_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.beton"
    path.write_bytes(content)
    with pytest.raises(BetonError) as error:
        BetonReader(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(BetonError, match="cannot be read"):
            BetonReader(path)


def patch(path: Path, at: int, dtype: str, value: int) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(np.array(value, dtype).tobytes())


@pytest.mark.parametrize(
    ("at", "dtype", "value", "word"),
    [
        (0, "<u2", 3, "version"),
        (4, "<u4", 3, "page size"),
        (8, "<u8", 0, "no samples"),
        (8, "<u8", 2**63, "metadata table"),
        (8, "<u8", 19, "number of samples"),
        (16, "<u8", 2**64 - 1, "allocation table"),
        (2, "<u2", 65535, "descriptors"),
        (24, "u1", 255, "type 255"),
        (24, "u1", 1, "no RGBImageField"),
        (METADATA + 5 * 24, "u1", 2, "sample 5.*mode"),
        (METADATA + 5 * 24 + 1, "<u2", 0, "sample 5.*width"),
        (METADATA + 3 * 24 + 1, "<u2", 999, "sample 3.*raw size"),
        (METADATA + 5 * 24 + 5, "<u8", 7, "sample 5.*allocation table"),
        (METADATA + 5 * 24 + 5, "<u8", 2**64 - 1, "sample 5.*allocation table"),
    ],
)
def test_damaged_tables_have_their_own_words(
    tmp_path: Path, at: int, dtype: str, value: int, word: str
) -> None:
    path = write(tmp_path / "a.beton", make_samples(20))
    if at != 0:  # else the checksum speaks first
        path = strip_trailer(path)
    patch(path, at, dtype, value)
    with pytest.raises(BetonError, match=word):
        BetonReader(path)


def test_pointers_outside_the_file(tmp_path: Path) -> None:
    """Metadata and allocation table agree with each other, not with the file."""
    path = strip_trailer(write(tmp_path / "a.beton", make_samples(20)))
    entry = path.stat().st_size - 20 * 24 + 5 * 24
    for ptr, size in [(2**64 - 10, 20), (0, 20), (10**12, 1), (METADATA + 600, 2**64 - 1)]:
        patch(path, METADATA + 5 * 24 + 5, "<u8", ptr)
        patch(path, entry + 8, "<u8", ptr)
        patch(path, entry + 16, "<u8", size)
        with pytest.raises(BetonError, match=r"sample 5: its bytes lie outside"):
            BetonReader(path)


def test_truncated_at_every_boundary(tmp_path: Path) -> None:
    path = write(tmp_path / "a.beton", make_samples(12), 4096 * 4)
    content, reader = path.read_bytes(), BetonReader(path)
    table = len(content) - 12 * 24
    marks = {0, 1, 24, 24 + 1041, METADATA, METADATA + 12 * 24, table, table - 32, len(content)}
    marks |= {table + 24 * k for k in range(12)}
    marks |= {int(o + s) for o, s in zip(reader.offset, reader.size, strict=True)}
    cut = tmp_path / "cut.beton"
    for stripped in (False, True):
        body = strip_trailer(path).read_bytes() if stripped else content
        for length in sorted({m + d for m in marks for d in (-1, 0, 1)}):
            if 0 <= length < len(content):
                cut.write_bytes(body[:length])
                with pytest.raises(BetonError):
                    BetonReader(cut)


@pytest.mark.parametrize("checksums", [True, False])
def test_fuzz(tmp_path: Path, checksums: bool) -> None:
    """3,000 seeded mutations of header and tables: an error, or data that is right.

    Without checksums (a stock file) a flipped label or JPEG side cannot be seen from the tables;
    then the arrays must still have every image inside the file.
    """
    path = write(tmp_path / "a.beton", make_samples(15), 1 << 14)
    if not checksums:
        path = strip_trailer(path)
    content = np.fromfile(path, np.uint8)
    good = tables(BetonReader(path))
    where = np.r_[0:24, 24:58, 1065:1100, METADATA : METADATA + 15 * 24,
                  len(content) - 15 * 24 - 150 : len(content)]  # fmt: skip
    rng = np.random.default_rng(7)
    other = tmp_path / "b.beton"
    messages = []
    for _ in range(3000):
        mutated = content.copy()
        for at in rng.choice(where, rng.integers(1, 4)):
            kind = rng.integers(3)
            bits = [1 << rng.integers(8), rng.integers(1, 256), 0xFF][kind]
            mutated[at] ^= np.uint8(bits)
        if rng.random() < 0.1:
            mutated = mutated[: rng.integers(len(mutated))]
        mutated.tofile(other)
        try:
            reader = BetonReader(other)
        except BetonError as error:
            messages.append(str(error))
            continue
        if checksums and reader.crc32 is not None:
            assert tables(reader) == good
        for k in range(len(reader)):
            assert len(reader.image(k)) == reader.size[k] > 0
        list(verify(other))
    assert len(messages) > 1000
    assert all(str(other) in m and "\n" not in m for m in messages)
