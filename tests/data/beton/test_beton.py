"""The .beton reader and writer: what is written comes back, also beyond 4 GiB."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from helpers.beton_files import check_equal, jpeg, make_samples, pixels, stock_reader_check, write

from fastselfie.data.beton import reader as beton
from fastselfie.data.beton import writer as beton_writer
from fastselfie.data.beton.reader import BetonError, BetonReader
from fastselfie.data.beton.verify import verify
from fastselfie.data.beton.writer import BetonWriter


def test_round_trip(tmp_path: Path) -> None:
    samples = make_samples(40)
    path = write(tmp_path / "a.beton", samples)
    reader = BetonReader(path)
    check_equal(reader, samples)
    assert reader.crc32 is not None
    assert reader.crc32.tolist() == [zlib.crc32(s[0]) for s in samples]
    assert reader.info == {"classes": ["a", "b"]}
    assert reader.field_names == ["image", "label"]
    assert not reader.data.flags.writeable
    assert sorted(os.listdir(tmp_path)) == ["a.beton"]
    assert list(verify(path)) == []
    with pytest.raises(IndexError, match="no sample 40"):
        reader.image(40)


def test_dtypes_and_shapes(tmp_path: Path) -> None:
    reader = BetonReader(write(tmp_path / "a.beton", make_samples(7)))
    kinds = {"offset": np.uint64, "size": np.uint64, "mode": np.uint8, "width": np.uint16,
             "height": np.uint16, "label": np.int64, "crc32": np.uint32}  # fmt: skip
    for name, dtype in kinds.items():
        array = getattr(reader, name)
        assert array.shape == (7,)
        assert array.dtype == dtype
        # Views of the file, so that processes share the memory; labels may be changed.
        assert array.flags.owndata == (name == "label")


def test_a_reader_pickles_as_its_path(tmp_path: Path) -> None:
    samples = make_samples(5)
    reader = BetonReader(write(tmp_path / "a.beton", samples))
    data = pickle.dumps(reader)
    assert len(data) < 500
    check_equal(pickle.loads(data), samples)


@pytest.mark.parametrize("delta", [-1, 0, 1])
def test_images_at_the_page_boundary(tmp_path: Path, delta: int) -> None:
    """Sizes around what is left of a page: fits exactly, one byte less, one more."""
    page = 4096
    start = -(-(24 + 2 * 1041 + 4 * 24) // 64) * 64
    first = b"\xff" * (page - start + delta)
    rest = [b"x" * page, b"y", b"z" * (page - 1)]
    samples = [(data, "jpg", 1, 1, k) for k, data in enumerate([first, *rest])]
    reader = BetonReader(write(tmp_path / "a.beton", samples, page))
    check_equal(reader, samples)
    pages = reader.offset // page
    assert np.array_equal(pages, (reader.offset + reader.size - 1) // page)
    assert reader.offset[0] == (start if delta <= 0 else page)


def test_refusals_of_the_writer(tmp_path: Path) -> None:
    with BetonWriter(tmp_path / "a.beton", 2, 4096) as writer:
        for args, word in [
            ((b"x" * 4097, "jpg", 1, 1, 0), "larger page size"),
            ((b"", "jpg", 1, 1, 0), "0 bytes"),
            ((b"x", "jpg", 65536, 1, 0), "65536x1"),
            ((b"x", "jpg", 0, 1, 0), "0x1"),
            ((b"xx", "raw", 1, 1, 0), "RGB has 3"),
        ]:
            with pytest.raises(BetonError, match=word):
                writer.append(*args)
        with pytest.raises(BetonError, match="0 of 2"):
            writer.finish()
        writer.append(b"x", "jpg", 1, 1, 0, source=5)
        with pytest.raises(BetonError, match="next source 6"):
            writer.append(b"x", "jpg", 1, 1, 0, source=5)
        with pytest.raises(ValueError, match="give one of jpg, raw"):
            writer.append(b"x", "png", 1, 1, 0)
        with pytest.raises(OverflowError):
            writer.append(b"x", "jpg", 1, 1, 2**63)
        writer.finish(allow_fewer=True)
    reader = BetonReader(tmp_path / "a.beton")
    assert len(reader) == 1
    assert reader.image(0).tobytes() == b"x"
    with pytest.raises(BetonError, match="exists already"):
        BetonWriter(tmp_path / "a.beton", 2, 4096)
    for page_size in (0, 2048, 5000, 1 << 32):
        with pytest.raises(ValueError, match="power of two"):
            BetonWriter(tmp_path / "b.beton", 2, page_size)


def test_two_processes_on_one_file(tmp_path: Path) -> None:
    """A second process is refused; a forked worker that outlives a killed writer is no obstacle."""
    code = (
        "import os, sys, time; from fastselfie.data.beton.writer import BetonWriter\n"
        "writer = BetonWriter(sys.argv[1], 2)\n"
        "child = os.fork()\n"
        "if child == 0: time.sleep(60)\n"
        "print(child, flush=True); time.sleep(60)"
    )
    path = tmp_path / "a.beton"
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        orphan = int(holder.stdout.readline())
        try:
            with pytest.raises(BetonError, match="another process"):
                BetonWriter(path, 2)
            holder.kill()
            holder.wait()
            BetonWriter(path, 2).close()
        finally:
            os.kill(orphan, signal.SIGKILL)


def test_verify_names_the_sample(tmp_path: Path) -> None:
    samples = make_samples(10)
    path = write(tmp_path / "a.beton", samples)
    reader = BetonReader(path)
    content = bytearray(path.read_bytes())
    content[int(reader.offset[4]) + 10] ^= 1
    path.write_bytes(content)
    (problem,) = verify(path)
    assert "sample 4" in problem
    assert "checksum" in problem
    assert list(verify(path, range(5, 10))) == []


def test_verify_without_checksums(tmp_path: Path) -> None:
    """A JPEG whose own header differs from the table, one cut short, one that is none."""
    image = jpeg(pixels(np.random.default_rng(0), 20, 10))
    bad = [(image, "jpg", 20, 10, 0), (image, "jpg", 20, 11, 0), (image[:-2], "jpg", 20, 10, 0),
           (b"not a jpeg", "jpg", 20, 10, 0)]  # fmt: skip
    problems = list(verify(write(tmp_path / "a.beton", bad)))
    assert [p.split(": ")[1] for p in problems] == ["sample 1", "sample 2", "sample 3"]


@pytest.mark.extra  # stock FFCV reads it too
def test_over_4_gib(tmp_path: Path) -> None:
    """A sparse file: an image beyond 4 GiB and one beyond 8, read by us and by stock FFCV."""
    path = tmp_path / "a.beton"
    samples = make_samples(6, raw_every=0)
    with BetonWriter(path, 6) as writer:
        for k, sample in enumerate(samples):
            if k in (2, 4):  # jump ahead as if 4 GiB had been appended
                writer._end = (k // 2) * (1 << 32) + 12345
                writer._data.seek(writer._end)
            writer.append(*sample)
        writer.finish()
    assert path.stat().st_size > 1 << 33
    assert path.stat().st_blocks * 512 < 1 << 24
    reader = BetonReader(path)
    assert reader.offset[2] > 1 << 32
    assert reader.offset[4] > 1 << 33
    check_equal(reader, samples)
    assert list(verify(path)) == []
    stock_reader_check(reader)


def calls_to_open(path: Path) -> tuple[BetonReader, int]:
    """The reader, and how many functions, C's too, ran to make it."""
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        reader = BetonReader(path)
    finally:
        sys.setprofile(None)
    return reader, calls


def test_a_file_of_imagenets_length_opens_at_once(tmp_path: Path) -> None:
    """In as many calls as one of 10 samples: numpy's work alone grows.

    1.3 million samples, in the file's order and, as stock FFCV leaves it, in its workers'.
    """
    small, few = calls_to_open(write(tmp_path / "small.beton", make_samples(10)))
    assert len(small) == 10
    n = 1_300_000
    path = tmp_path / "a.beton"
    records = np.zeros(n, beton_writer.RECORD)
    with BetonWriter(path, n) as writer:
        records["ptr"] = writer._end + np.arange(n) * 10
        records["size"], records["width"], records["height"] = 10, 1, 1
        writer._data.truncate(writer._end + n * 10)
        writer._end += n * 10
        writer._data.seek(writer._end)
        writer._journal.write(records.tobytes())
        writer.count = n
        writer.finish()
    reader, calls = calls_to_open(path)
    assert len(reader) == n
    assert reader.crc32 is not None
    assert calls <= 2 * few
    table = path.stat().st_size - n * 24
    entries = np.memmap(path, beton.ALLOCATION, "r+", table)
    entries[:] = np.concatenate([entries[k::7] for k in range(7)])
    entries.flush()
    strip_trailer_of_large(path, table)
    shuffled, calls = calls_to_open(path)
    assert np.array_equal(shuffled.size, reader.size)
    assert calls <= 2 * few


def strip_trailer_of_large(path: Path, table: int) -> None:
    with open(path, "r+b") as file:
        file.seek(table - 8)
        assert file.read(8) == b"FSELFIE1"
        file.seek(table - 8)
        file.write(bytes(8))
