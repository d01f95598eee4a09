"""The native loader against the plain one, over threads, resumes, and damaged images."""

from __future__ import annotations

import gc
import io
import threading
from contextlib import closing

import numpy as np
import pytest
import torch
from conftest import picture
from helpers.loaders import make_loader, take

from fastselfie.data.beton.writer import BetonWriter
from fastselfie.errors import UserError
from fastselfie.kernels import jpeg

COUNT = 24


def encoded(seed, **options):
    out = io.BytesIO()
    picture(seed, 90 + 7 * seed % 60, 80 + 5 * seed % 50).save(out, "JPEG", quality=92, **options)
    return out.getvalue()


def write(path, samples):
    """samples: (bytes, mode, width, height); labels 0, 1, 0, 1..."""
    with BetonWriter(path, len(samples)) as writer:
        for i, (data, mode, width, height) in enumerate(samples):
            writer.append(data, mode, width, height, i % 2)
        writer.finish({"classes": ["even", "odd"]})
    return path


@pytest.fixture
def photos():
    """JPEGs in three subsamplings, with and without restart markers, and raw pixels between."""
    samples = []
    for i in range(COUNT):
        if i % 6 == 5:
            image = np.asarray(picture(i, 70, 60))
            samples.append((image.tobytes(), "raw", 70, 60))
            continue
        data = encoded(i, subsampling=i % 3)
        data = jpeg.transcode(data) if i % 2 else data
        header = jpeg.read_header(data)
        samples.append((data, "jpg", header.width, header.height))
    return samples


@pytest.fixture
def beton(tmp_path, photos):
    return write(tmp_path / "photos.beton", photos)


def loader(path, kind="native", **data):
    return make_loader(path, kind, **{"crop": "resized", "test": str(path), **data})


def taken(iterator, count):
    return [(b.images, b.labels, b.flip, b.index.samples.tolist()) for b in take(iterator, count)]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a[:3], b[:3], strict=True)) and a[3] == b[3]


def psnr(a, b):
    error = (a.double() - b.double()).square().mean().item()
    return 10 * np.log10(255**2 / max(error, 1e-9))


@pytest.mark.parametrize("augment", [True, False])
def test_pixels_are_those_of_the_plain_loader(beton, augment):
    """Same boxes, flips, labels and order; pixels to 38 dB, as two JPEG decoders differ."""
    batches = []
    for kind in ("native", "folder"):
        made = loader(beton, kind)
        batches.append(
            taken(made.stream(0, 7) if augment else made.in_order(7), 10 if augment else 9)
        )
    for native, plain in zip(*batches, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(native[1:3], plain[1:3], strict=True))
        assert native[3] == plain[3]
        assert min(psnr(x, y) for x, y in zip(native[0], plain[0], strict=True)) > 38


def test_small_raw_images_are_exact(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    path = write(tmp_path / "raw.beton", [(x.tobytes(), "raw", 32, 32) for x in images])
    options = {"crop": "pad", "pad": 4, "pad_mode": "reflect", "flip": False}
    native = taken(loader(path, **options).stream(0, 8), 6)
    for kind in ("folder", "resident"):
        plain = taken(loader(path, kind, **options).stream(0, 8), 6)
        assert all(same(a, b) for a, b in zip(native, plain, strict=True)), kind


def test_batches_do_not_depend_on_the_threads(beton):
    runs = [taken(loader(beton, workers=threads).stream(0, 7), 8) for threads in (1, 2, 4)]
    for other in runs[1:]:
        assert all(same(a, b) for a, b in zip(runs[0], other, strict=True))


@pytest.mark.parametrize("start", [1, 7, 23, 24, 40])
def test_a_resume_at_any_sample_goes_on_exactly(beton, start):
    whole = taken(loader(beton).stream(0, 1), start + 9)
    rest = taken(loader(beton, workers=2).stream(start, 3), 3)
    for i, batch in enumerate(rest):
        for row in range(3):
            one = whole[start + 3 * i + row]
            assert torch.equal(batch[0][row], one[0][0])
            assert batch[3][row] == one[3][0]


def test_evaluation_keeps_the_remainder(beton):
    batches = taken(loader(beton).in_order(10), 99)
    assert [len(b[0]) for b in batches] == [10, 10, 4]
    assert [sample for b in batches for sample in b[3]] == list(range(COUNT))


def test_a_batch_that_is_held_is_not_written_to(beton):
    with closing(loader(beton).stream(0, 5)) as batches:
        held = next(batches)
        view, before = held.images[1:3], held.images.clone()
        del held
        for _ in range(8):
            next(batches)
        assert torch.equal(view, before[1:3])


def test_memory_of_batches_is_used_again(beton):
    with closing(loader(beton).stream(0, 5)) as batches:
        addresses = {next(batches).images.data_ptr() for _ in range(20)}
    assert len(addresses) <= 5


def test_threads_end_with_an_epoch_left_early(beton):
    before = threading.active_count()
    for _ in range(5):
        taken(loader(beton, workers=4).stream(0, 5), 2)
    gc.collect()
    assert threading.active_count() == before
    with open("/proc/self/status") as status:
        threads = next(int(x.split()[1]) for x in status if x.startswith("Threads:"))
    for _ in range(5):
        taken(loader(beton, workers=4).stream(0, 5), 2)
    with open("/proc/self/status") as status:
        assert next(int(x.split()[1]) for x in status if x.startswith("Threads:")) <= threads


@pytest.fixture
def damaged(tmp_path, photos):
    """Samples 3 and 10 are cut in the middle."""
    samples = list(photos)
    for i in (3, 10):
        data, mode, width, height = samples[i]
        samples[i] = (data[: len(data) // 2], mode, width, height)
    return write(tmp_path / "damaged.beton", samples)


def test_a_resident_set_skips_damaged_images_once(damaged):
    made = loader(damaged, "resident", crop="pad", on_error="skip")
    assert made.skipped == 2
    images = taken(made.in_order(COUNT), 1)[0][0]
    assert torch.equal(images[3], images[4])
    with pytest.raises(UserError, match=r"damaged\.beton: sample 3"):
        loader(damaged, "resident", crop="pad")


@pytest.mark.parametrize("kind", ["native", "folder"])
def test_a_damaged_image_is_named(damaged, kind):
    with pytest.raises(UserError, match=r"damaged\.beton: sample (3|10): ") as caught:
        taken(loader(damaged, kind).stream(0, 8), 3)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["native", "folder"])
def test_a_damaged_image_is_skipped_and_counted(damaged, beton, kind):
    made = loader(damaged, kind, on_error="skip")
    batches = taken(made.stream(0, 8), 6)  # two epochs of 24
    assert made.skipped == 4
    whole = taken(loader(beton, kind).stream(0, 8), 6)
    for skipped, good in zip(batches, whole, strict=True):
        for row, sample in enumerate(good[3]):
            if sample in (3, 10):
                stand_in = good[3].index(skipped[3][row])
                assert skipped[3][row] not in (3, 10)
                assert torch.equal(skipped[0][row], good[0][stand_in])
                assert skipped[1][row] == good[1][stand_in]
            else:
                assert torch.equal(skipped[0][row], good[0][row])
                assert skipped[1][row] == good[1][row]


def test_a_batch_of_nothing_but_damage_is_an_error(tmp_path, photos):
    path = write(tmp_path / "all.beton", [(d[:60], m, w, h) for d, m, w, h in photos if m == "jpg"])
    with pytest.raises(UserError, match=r"all\.beton: sample"):
        taken(loader(path, on_error="skip").stream(0, 8), 1)


def test_other_sources_are_refused(image_folder):
    with pytest.raises(UserError, match="fastselfie prepare DIR --out"):
        make_loader(image_folder, "native")


def test_auto_picks_native_for_a_prepared_file(beton):
    assert loader(beton, "auto").backend_name == "native"
