"""The .beton reader and writer: against stock FFCV both ways, hostile files, kills, > 4 GiB."""

from __future__ import annotations

import io
import os
import pickle
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastselfie.data import beton, beton_writer
from fastselfie.data.beton import BetonError, BetonReader, verify
from fastselfie.data.beton_writer import BetonWriter

Sample = tuple[bytes, str, int, int, int]  # image bytes, mode, width, height, label


def pixels(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Smooth colours and a little noise: JPEG sizes like a photograph's."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / rng.uniform(3, 30) + y / rng.uniform(3, 30)) for _ in range(3)]
    image = 128 + 90 * np.stack(waves, -1) + rng.normal(0, 8, (height, width, 3))
    return image.clip(0, 255).astype(np.uint8)


def jpeg(image: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "JPEG", quality=85)
    return out.getvalue()


def make_samples(n: int, seed: int = 0, raw_every: int = 3) -> list[Sample]:
    """n images of sides 1 to 60, each `raw_every`-th raw (0: none), labels over all of int64."""
    rng = np.random.default_rng(seed)
    samples = []
    for k in range(n):
        width, height = (int(v) for v in rng.integers(1, 61, 2))
        image = pixels(rng, width, height)
        raw = bool(raw_every) and k % raw_every == 0
        label = int(rng.integers(-(2**63), 2**63 - 1)) if k % 5 else k
        data = image.tobytes() if raw else jpeg(image)
        samples.append((data, "raw" if raw else "jpg", width, height, label))
    return samples


def write(path: Path, samples: list[Sample], page_size: int = 1 << 21) -> Path:
    with BetonWriter(path, len(samples), page_size) as writer:
        for sample in samples:
            writer.append(*sample)
        writer.finish({"classes": ["a", "b"]})
    return path


def check_equal(reader: BetonReader, samples: list[Sample]) -> None:
    assert len(reader) == len(samples)
    for k, (data, mode, width, height, label) in enumerate(samples):
        assert reader.image(k).tobytes() == data
        assert reader.mode[k] == beton.IMAGE_MODES[mode]
        assert (reader.width[k], reader.height[k], reader.label[k]) == (width, height, label)


# --- alone ------------------------------------------------------------------------------------


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
        assert array.flags.c_contiguous


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
        "import os, sys, time; from fastselfie.data.beton_writer import BetonWriter\n"
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


# --- stock FFCV -------------------------------------------------------------------------------


class Arrays:
    """An indexable dataset of (pixels, label) for FFCV's DatasetWriter."""

    def __init__(self, n: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.images = [pixels(rng, *(int(v) for v in rng.integers(8, 90, 2))) for _ in range(n)]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, k: int) -> tuple[np.ndarray, int]:
        return self.images[k], 3 * k - 7


# numba's finalizer fails on functions that the garbage collector found in a circle.
COMPILED: list[object] = []


def stock_reader_check(reader: BetonReader) -> None:
    """Stock FFCV's Reader and memory manager see the same images under the same indices."""
    from ffcv.memory_managers import OSCacheManager
    from ffcv.reader import Reader

    stock = Reader(str(reader.path))
    names = [f"f{k}" for k in range(len(stock.field_names))]
    image = stock.metadata[names[stock.field_names.index("image")]]
    assert np.array_equal(image["data_ptr"], reader.offset)
    assert np.array_equal(image["mode"], reader.mode)
    assert np.array_equal(image["width"], reader.width)
    assert np.array_equal(image["height"], reader.height)
    label = stock.metadata[names[stock.field_names.index("label")]]
    assert np.array_equal(label, reader.label)
    manager = OSCacheManager(stock)
    read = manager.compile_reader()
    COMPILED.append(read)
    with manager.schedule_epoch([]) as context:
        for k in range(len(reader)):
            data = read(np.uint64(image["data_ptr"][k]), context.state)
            assert data.tobytes() == reader.image(k).tobytes()


@pytest.mark.parametrize("page_size", [4096, 1 << 14, 1 << 21])
def test_stock_ffcv_reads_ours(tmp_path: Path, page_size: int) -> None:
    samples = [s for s in make_samples(300, raw_every=4) if len(s[0]) <= page_size]
    stock_reader_check(BetonReader(write(tmp_path / "a.beton", samples, page_size)))


@pytest.mark.parametrize(("os_cache", "order"), [(True, "RANDOM"), (False, "QUASI_RANDOM"),
                                                 (False, "SEQUENTIAL")])  # fmt: skip
@pytest.mark.parametrize("mode", ["jpg", "raw", "mixed"])
def test_stock_loader_decodes_ours(tmp_path: Path, os_cache: bool, order: str, mode: str) -> None:
    """The whole stock Loader, both memory managers: pixels equal to each image's own decode."""
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.rgb_image import SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption

    rng = np.random.default_rng(1)
    images = [pixels(rng, 40, 24) for _ in range(64)]
    raw = [mode == "raw" or (mode == "mixed" and k % 2 == 0) for k in range(64)]
    samples: list[Sample] = [
        (i.tobytes() if r else jpeg(i), "raw" if r else "jpg", 40, 24, k)
        for k, (i, r) in enumerate(zip(images, raw, strict=True))
    ]
    path = write(tmp_path / "a.beton", samples, 1 << 13)
    pipelines = {"image": [SimpleRGBImageDecoder()], "label": [IntDecoder()]}
    loader = Loader(str(path), batch_size=10, num_workers=2, os_cache=os_cache, drop_last=False,
                    order=OrderOption[order], pipelines=pipelines)  # fmt: skip
    COMPILED.append(loader.code)
    seen = []
    for batch, labels in loader:
        for got, label in zip(batch, labels[:, 0], strict=True):
            seen.append(int(label))
            want = images[label] if raw[label] else None
            if want is None:
                want = np.array(Image.open(io.BytesIO(samples[label][0])))
                # Pillow's islow DCT against FFCV's FASTDCT: a few levels apart, no more.
                assert np.abs(got.astype(int) - want).mean() < 2
            else:
                assert np.array_equal(got, want)
    assert sorted(seen) == list(range(64))


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("mode", ["jpg", "raw", "smart", "proportion"])
def test_ours_reads_stock(tmp_path: Path, mode: str, workers: int) -> None:
    from ffcv.fields import IntField, RGBImageField
    from ffcv.fields.rgb_image import encode_jpeg
    from ffcv.writer import DatasetWriter

    data = Arrays(230)
    path = tmp_path / "stock.beton"
    field = RGBImageField(write_mode=mode, smart_threshold=8000, jpeg_quality=80)
    fields = {"image": field, "label": IntField()}
    DatasetWriter(str(path), fields, page_size=1 << 21, num_workers=workers).from_indexed_dataset(
        data, chunksize=7
    )
    reader = BetonReader(path)
    assert reader.crc32 is None
    assert reader.info == {}
    assert reader.label.tolist() == [3 * k - 7 for k in range(230)]
    for k, image in enumerate(data.images):
        assert (reader.height[k], reader.width[k]) == image.shape[:2]
        want = image.tobytes() if reader.mode[k] else encode_jpeg(image, 80).tobytes()
        assert reader.image(k).tobytes() == want
    modes = {"jpg": {0}, "raw": {1}}.get(mode, {0, 1})
    assert set(reader.mode.tolist()) == modes
    stock_reader_check(reader)
    assert list(verify(path)) == []


def test_other_fields_of_stock(tmp_path: Path) -> None:
    """Fields of every built-in type around ours, the label before the image, two int fields."""
    import torch
    from ffcv import fields as f
    from ffcv.writer import DatasetWriter

    images = Arrays(20).images

    class Rows:
        def __len__(self) -> int:
            return 20

        def __getitem__(self, k: int) -> tuple[object, ...]:
            return (k * 0.5, k + 100, images[k], {"k": int(k)}, np.arange(k + 1, dtype=np.uint8),
                    np.full(3, k, np.float32), k, torch.zeros(2))  # fmt: skip

    path = tmp_path / "stock.beton"
    kinds = {"score": f.FloatField(), "other": f.IntField(),
             "image": f.RGBImageField(write_mode="jpg"), "note": f.JSONField(),
             "bytes": f.BytesField(), "array": f.NDArrayField(np.dtype("f4"), (3,)),
             "label": f.IntField(), "t": f.TorchTensorField(torch.float32, (2,))}  # fmt: skip
    DatasetWriter(str(path), kinds, 1 << 21, num_workers=1).from_indexed_dataset(Rows())
    reader = BetonReader(path)
    assert reader.field_names == list(kinds)
    assert reader.label.tolist() == list(range(20))
    assert reader.height.tolist() == [i.shape[0] for i in images]
    assert list(verify(path)) == []


# --- hostile files ----------------------------------------------------------------------------


def tables(reader: BetonReader) -> tuple[object, ...]:
    fields = (reader.offset, reader.size, reader.mode, reader.width, reader.height, reader.label)
    return (*(f.tolist() for f in fields), reader.page_size, reader.field_names)


def strip_trailer(path: Path) -> Path:
    """The same file as stock FFCV would have it: no magic, so no checksums."""
    content = path.read_bytes()
    at = content.rindex(b"FSELFIE1")
    path.write_bytes(content[:at] + b"\0" * 8 + content[at + 8 :])
    return path


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


METADATA = 24 + 2 * 1041


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


# --- kills ------------------------------------------------------------------------------------

CHILD = """
import pickle, sys, time
from fastselfie.data import beton_writer
beton_writer.CHECKPOINT_BYTES = 1 << 16
with open({samples!r}, "rb") as file:
    samples = pickle.load(file)
with beton_writer.BetonWriter({path!r}, 400, 1 << 14, fingerprint="x") as writer:
    print("start", writer.count, flush=True)
    for sample in samples[writer.next_source:]:
        writer.append(*sample)
        time.sleep(0.0005)
    writer.finish(dict(classes=["a", "b"]))
print("done", flush=True)
"""


def test_killed_and_run_again_gives_the_same_bytes(tmp_path: Path) -> None:
    samples = make_samples(400, seed=3)
    kept = tmp_path / "samples.pickle"
    kept.write_bytes(pickle.dumps(samples))
    whole = tmp_path / "whole.beton"
    with BetonWriter(whole, 400, 1 << 14, fingerprint="x") as writer:
        for sample in samples:
            writer.append(*sample)
        writer.finish({"classes": ["a", "b"]})
    path = tmp_path / "killed.beton"
    rng = np.random.default_rng(5)
    starts = []
    for _ in range(40):
        command = [sys.executable, "-c", CHILD.format(samples=str(kept), path=str(path))]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            starts.append(int(child.stdout.readline().split()[1]))
            time.sleep(rng.uniform(0.02, 0.12))
            child.send_signal(signal.SIGKILL)
        if path.exists():
            break
        assert not path.exists()
        assert (tmp_path / "killed.beton.partial").exists()
    assert path.read_bytes() == whole.read_bytes()
    assert len(starts) > 2
    assert starts == sorted(starts)
    assert starts[-1] > 0
    left = {p.name for p in tmp_path.iterdir()}
    assert left <= {kept.name, "whole.beton", "killed.beton", "killed.beton.journal"}


def snapshots(path: Path, samples: list[Sample]) -> tuple[bytes, bytes, bytes]:
    """(partial, journal) after all appends without finish, and the finished file."""
    writer = BetonWriter(path, len(samples), 4096 * 4)
    for sample in samples:
        writer.append(*sample)
    writer.close()
    partial, journal = (Path(f"{path}{s}").read_bytes() for s in (".partial", ".journal"))
    writer = BetonWriter(path, len(samples), 4096 * 4)
    assert writer.count == len(samples)
    writer.finish({"classes": ["a", "b"]})
    return partial, journal, path.read_bytes()


def test_resume_from_any_torn_state(tmp_path: Path) -> None:
    """Partial file and journal cut or damaged anywhere, in any combination."""
    samples = make_samples(30, seed=9)
    partial, journal, whole = snapshots(tmp_path / "a.beton", samples)
    rng = np.random.default_rng(2)
    path = tmp_path / "b.beton"
    counts = set()
    for trial in range(300):
        data, notes = bytearray(partial), bytearray(journal)
        kind = trial % 5
        if kind in (0, 2):
            del data[rng.integers(len(data) + 1) :]
        if kind in (1, 2):
            del notes[rng.integers(len(notes) + 1) :]
        if kind == 3:  # killed in `finish`: tables stand behind the data and over the front
            data = bytearray(whole[: rng.integers(len(partial), len(whole))])
        if kind == 4:  # a power cut: bytes that never reached the disk
            data[rng.integers(METADATA, len(data)) :][:100] = b""
            at = int(rng.integers(len(data)))
            data[at : at + 50] = bytes(len(data[at : at + 50]))
            at = int(rng.integers(56, len(notes)))
            notes[at] ^= 1
        Path(f"{path}.partial").write_bytes(data)
        Path(f"{path}.journal").write_bytes(notes)
        with BetonWriter(path, 30, 4096 * 4) as writer:
            counts.add(writer.count)
            for sample in samples[writer.next_source :]:
                writer.append(*sample)
            writer.finish({"classes": ["a", "b"]})
        assert path.read_bytes() == whole, (trial, kind)
        path.unlink()
    assert len(counts) > 20


def test_resume_refuses_other_options(tmp_path: Path) -> None:
    path = tmp_path / "a.beton"
    writer = BetonWriter(path, 5, 4096, fingerprint="quality=90")
    writer.append(b"x", "jpg", 1, 1, 0)
    writer.close()
    for count, page, print_ in [(6, 4096, "quality=90"), (5, 8192, "quality=90"), (5, 4096, "")]:
        with pytest.raises(BetonError, match=r"partial.*other options"):
            BetonWriter(path, count, page, fingerprint=print_)
    assert BetonWriter(path, 5, 4096, fingerprint="quality=90").count == 1


def test_skipped_sources_resume_at_the_right_one(tmp_path: Path) -> None:
    path = tmp_path / "a.beton"
    for _ in range(2):
        with BetonWriter(path, 10, 4096) as writer:
            for source in range(writer.next_source, 10):
                if source % 3:
                    writer.append(bytes([source]), "jpg", 1, 1, source, source=source)
                if source == 5 and writer.count == 4:
                    break
            else:
                writer.finish(allow_fewer=True)
    reader = BetonReader(path)
    assert reader.label.tolist() == [1, 2, 4, 5, 7, 8]


# --- large ------------------------------------------------------------------------------------


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


def test_a_file_of_imagenets_length_opens_at_once(tmp_path: Path) -> None:
    """1.3 million samples, in the file's order and, as stock FFCV leaves it, in its workers'."""
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
    start = time.perf_counter()
    reader = BetonReader(path)
    seconds = time.perf_counter() - start
    assert len(reader) == n
    assert reader.crc32 is not None
    assert seconds < 1.0  # 0.1 s alone on the machine; room for a busy one
    table = path.stat().st_size - n * 24
    entries = np.memmap(path, beton.ALLOCATION, "r+", table)
    entries[:] = np.concatenate([entries[k::7] for k in range(7)])
    entries.flush()
    strip_trailer_of_large(path, table)
    start = time.perf_counter()
    shuffled = BetonReader(path)
    seconds = time.perf_counter() - start
    assert np.array_equal(shuffled.size, reader.size)
    assert seconds < 1.0


def strip_trailer_of_large(path: Path, table: int) -> None:
    with open(path, "r+b") as file:
        file.seek(table - 8)
        assert file.read(8) == b"FSELFIE1"
        file.seek(table - 8)
        file.write(bytes(8))
