"""DALI fed by us: the folder loader's batches, whatever the file and wherever a run resumes."""

from __future__ import annotations

import subprocess
import sys
import threading
from contextlib import closing
from functools import partial

import numpy as np
import pytest
import torch
from conftest import jpeg_bytes, psnr, textured, thread_count, write_beton
from helpers.deviations import HARMLESS, LOST, SOURCES, cases
from helpers.loaders import make_loader, take
from PIL import Image

from fastselfie.data.beton.writer import BetonWriter
from fastselfie.data.loaders import Index
from fastselfie.data.loaders.dali import DaliBackend, _cut, fn
from fastselfie.errors import UserError
from fastselfie.kernels.jpeg import read_header, transcode

pytestmark = [pytest.mark.extra, pytest.mark.slow]

loader = partial(make_loader, crop="resized", image_size=48, held_out=0.1, workers=2)
# Decoders and filters differ in rounding alone: 52 dB is the least on 600 photographs. A shift by
# half a pixel costs more than 10 dB on these pictures.
CLOSE = 34


def sizes_of(seed):
    return (int(v) for v in np.random.default_rng(seed).integers(50, 160, 2))


@pytest.fixture(scope="module")
def beton(tmp_path_factory):
    """40 images: transcoded for the bitstream crop, as they came, gray, raw; 36 are for training.

    The held-out tenth makes the samples' numbers differ from the file's.
    """
    images = []
    for i in range(40):
        image = textured(i, *sizes_of(i))
        if i % 10 == 9:
            images.append(image)
            continue
        image = image.convert("L") if i % 10 == 7 else image
        data = jpeg_bytes(image, subsampling=i % 3) if image.mode == "RGB" else jpeg_bytes(image)
        images.append(data if i % 10 == 5 else transcode(data))
    path = tmp_path_factory.mktemp("dali") / "a.beton"
    return write_beton(path, images, [i % 4 for i in range(40)])


@pytest.fixture(scope="module")
def mixed_folder(tmp_path_factory):
    """2 classes of 11 files: what people have in image folders."""
    root = tmp_path_factory.mktemp("mixed")
    for label in ("a", "b"):
        (root / label).mkdir()
        for i in range(11):
            image = textured(i + 50 * (label == "b"), *sizes_of(i))
            options = {}
            if i == 1:
                image = image.convert("L")
            elif i == 2:
                image = image.convert("CMYK")
            elif i == 3:
                options = {"progressive": True}
            elif i == 4:
                options = {"exif": Image.Exif()}
                options["exif"][0x0112] = 6  # turned by 90 degrees; torchvision does not look
            elif i == 5:
                image = image.convert("RGBA")
            image.save(root / label / f"{i:02}.{'png' if i in (0, 5) else 'jpg'}", **options)
    return root


def check_same(ours, reference):
    assert len(ours) == len(reference)
    for a, b in zip(ours, reference, strict=True):
        assert np.array_equal(a.index.samples, b.index.samples)
        assert np.array_equal(a.index.epochs, b.index.epochs)
        assert torch.equal(a.labels, b.labels)
        assert torch.equal(a.flip, b.flip)
        assert a.images.shape == b.images.shape
        for row, sample in enumerate(a.index.samples):
            assert psnr(a.images[row], b.images[row]) >= CLOSE, sample


@pytest.mark.parametrize("source", ["beton", "mixed_folder"])
def test_it_equals_the_folder_loader_over_three_epochs(source, request):
    path = request.getfixturevalue(source)
    ours, folder = loader(path, "dali"), loader(path, "folder")
    batches = -(-3 * len(ours) // 7)  # 7 divides neither set: batches cross the epochs' ends
    check_same(take(ours.stream(0, 7), batches), take(folder.stream(0, 7), batches))


@pytest.mark.parametrize("source", ["beton", "mixed_folder"])
def test_evaluation_equals_the_folder_loader_and_ends_short(source, request):
    path = request.getfixturevalue(source)
    ours = take(loader(path, "dali").in_order(7), 99)
    check_same(ours, take(loader(path, "folder").in_order(7), 99))
    assert len(ours[-1].images) == len(loader(path, "dali")) % 7


@pytest.mark.parametrize("consumed", [1, 17, 36, 50])
def test_a_run_resumes_at_any_sample(beton, consumed):
    whole = torch.cat([b.images for b in take(loader(beton, "dali").stream(0, 9), 8)])
    rest = take(loader(beton, "dali", workers=1).stream(consumed, 5), 3)
    assert torch.equal(torch.cat([b.images for b in rest]), whole[consumed : consumed + 15])


@pytest.mark.parametrize("mode", ["zero", "reflect", "none"])
def test_small_raw_images_are_shifted_exactly(tmp_path, mode):
    images = [textured(i, 32, 32) for i in range(20)]
    path = write_beton(tmp_path / "raw.beton", images, [i % 2 for i in range(20)])
    data = {"crop": "pad", "image_size": 32, "pad": 4, "pad_mode": mode}
    ours, folder = (loader(path, kind, **data).stream(0, 8) for kind in ("dali", "folder"))
    for a, b in zip(take(ours, 5), take(folder, 5), strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.labels, b.labels)


def test_dali_gets_no_more_of_a_picture_than_its_box(beton):
    ours = loader(beton, "dali")
    whole = [ours._backend._encoded(sample) for sample in range(len(ours.source))]
    able = [e for e in whole if e.data[0] == 0xFF and read_header(e.data.data).can_crop]
    assert len(able) > 20
    for found in able:
        item = _cut(found, np.asarray([16, 16, 16, 16]))
        assert len(item.data) < len(found.data)
        # An interval is up to 64 pixels wide, an MCU up to 16 high.
        header = read_header(item.data.data)
        assert header.width <= 128
        assert header.height <= 32


def test_batches_are_prepared_outside_of_the_thread_that_trains(beton, monkeypatch):
    """It launches kernels, which would wait for 62 us an image."""
    threads, prepare = set(), DaliBackend._prepare

    def noted(*arguments):
        threads.add(threading.current_thread())
        return prepare(*arguments)

    monkeypatch.setattr(DaliBackend, "_prepare", noted)
    take(loader(beton, "dali").stream(0, 8), 3)
    assert threads
    assert threading.current_thread() not in threads


def test_the_decoder_interpolates_colours_as_libjpeg_does(beton, monkeypatch):
    """DALI's GPU decoder repeats them unless it is told."""
    asked, decode = [], fn.decoders.image

    def noted(*arguments, **options):
        asked.append(options["jpeg_fancy_upsampling"])
        return decode(*arguments, **options)

    monkeypatch.setattr(fn.decoders, "image", noted)
    take(loader(beton, "dali").stream(0, 8), 1)
    assert asked == [True]


def test_batches_may_be_kept(beton):
    kept = take(loader(beton, "dali").stream(0, 9), 12)
    again = take(loader(beton, "dali").stream(0, 9), 12)
    assert all(torch.equal(a.images, b.images) for a, b in zip(kept, again, strict=True))


def test_an_epoch_left_early_leaves_no_thread(beton):
    take(loader(beton, "dali").stream(0, 4), 1)
    before = thread_count()
    for count in (1, 2, 5):
        take(loader(beton, "dali").stream(0, 4), count)
        assert thread_count() == before


def damaged(image, how):
    """JPEG bytes that fail in the header, at the crop, or only in DALI."""
    if how == "header":
        return b"\xff\xd8 no jpeg at all"
    if how == "crop":
        data = transcode(jpeg_bytes(image))
        return data[: len(data) // 3]
    # Nothing of ours looks beyond the header of a progressive one.
    data = jpeg_bytes(image, progressive=True)
    return data[: len(data) // 3]


@pytest.mark.parametrize("how", ["header", "crop", "dali"])
@pytest.mark.parametrize("kind", ["beton", "folder"])
class TestDamage:
    BAD = 13

    def source(self, tmp_path, kind, how, bad):
        images = [textured(i, 90, 70) for i in range(20)]
        files = [transcode(jpeg_bytes(image)) for image in images]
        for i in bad:
            files[i] = damaged(images[i], how)
        if kind == "folder":
            for i, data in enumerate(files):
                (tmp_path / "ab"[i // 10]).mkdir(exist_ok=True)
                (tmp_path / "ab"[i // 10] / f"{i:02}.jpg").write_bytes(data)
            return tmp_path
        path = tmp_path / "a.beton"
        with BetonWriter(path, 20) as writer:
            for i, data in enumerate(files):
                writer.append(data, "jpg", 90, 70, i // 10)
            writer.finish()
        return path

    def sequence(self, path, **data):
        # data.test is the same set: no split, so that samples are numbered as in the file.
        return loader(path, "dali", test=str(path), area=(1.0, 1.0), **data)

    def test_raise_names_the_image(self, tmp_path, kind, how):
        path = self.source(tmp_path, kind, how, [self.BAD])
        name = r"b/13\.jpg: " if kind == "folder" else r"a\.beton: sample 13: "
        before = thread_count()
        batches = self.sequence(path).in_order(5)
        assert [next(batches).index.samples[0] for _ in range(2)] == [0, 5]
        with pytest.raises(UserError, match=name) as caught:
            next(batches)
        assert "\n" not in str(caught.value)
        batches.close()
        del caught  # its traceback holds the pipeline
        assert thread_count() <= before

    def test_skip_puts_another_in_its_place(self, tmp_path, kind, how):
        bad = [self.BAD, 14, 2]
        (tmp_path / "damaged").mkdir()
        path = self.source(tmp_path / "damaged", kind, how, bad)
        (tmp_path / "whole").mkdir()
        good = self.source(tmp_path / "whole", kind, how, [])
        ours = self.sequence(path, on_error="skip")
        batches = take(ours.in_order(5), 99)
        reference = torch.cat([b.images for b in take(self.sequence(good).in_order(5), 99)])
        shown = np.concatenate([b.index.samples for b in batches])
        assert shown.tolist() == [0, 1, 3, 3, 4, *range(5, 13), 10, 10, *range(15, 20)]
        assert ours.skipped == 3
        assert torch.equal(torch.cat([b.images for b in batches]), reference[shown])


def test_a_table_that_lies_is_a_failure(tmp_path):
    path = tmp_path / "a.beton"
    with BetonWriter(path, 4) as writer:
        for i in range(4):
            writer.append(jpeg_bytes(textured(i, 60, 50)), "jpg", 60 + 9 * (i == 2), 50, i % 2)
        writer.finish()
    with pytest.raises(UserError, match=r"sample 2: its JPEG is 60x50, the table says 69x50"):
        take(loader(path, "dali", test=str(path)).in_order(4), 1)


def test_a_file_that_is_gone_is_one_line(mixed_folder, tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(2):
            textured(i, 60, 50).save(tmp_path / name / f"{i}.jpg")
    ours = loader(tmp_path, "dali", test=str(tmp_path))
    (tmp_path / "b" / "1.jpg").unlink()
    with pytest.raises(UserError, match=r"b/1\.jpg: unreadable image"):
        take(ours.in_order(4), 1)


def test_without_the_extra_one_line_says_how(beton, monkeypatch):
    monkeypatch.delitem(sys.modules, "fastselfie.data.loaders.dali", raising=False)
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(UserError, match=r"not installed.*fastselfie\[dali\]") as caught:
        loader(beton, "dali")
    assert "\n" not in str(caught.value)


def test_the_loaders_import_no_extra():
    code = (
        "import sys, fastselfie.data.loaders;"
        "print(*{'ffcv', 'numba', 'cv2', 'nvidia', 'nvidia.dali'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert out.stdout.split() == []


@pytest.mark.parametrize(("kind", "failing"), [(HARMLESS, False), (LOST, True)])
def test_the_same_jpegs_of_a_folder_are_damaged_as_for_pillow(tmp_path, kind, failing):
    for i, (deviation, source) in enumerate(cases(kind)):
        if source in ("4:2:0", "restarts", "progressive"):
            (tmp_path / str(i % 2)).mkdir(exist_ok=True)
            (tmp_path / str(i % 2) / f"{i}.jpg").write_bytes(kind[deviation][0](SOURCES[source]))
    found = {}
    for loader_kind in ("dali", "folder"):
        made = loader(tmp_path, loader_kind, workers=1)
        every = np.arange(len(made.source), dtype=np.int64)
        plan = iter([Index(every, np.zeros_like(every))])
        still = made._views[0].without_augmentation()
        with closing(made._backend.load(plan, [still])) as loaded:
            found[loader_kind] = [row for row, _ in next(loaded).failures]
        assert found[loader_kind] == (every.tolist() if failing else [])
