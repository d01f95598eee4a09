"""The public Loader: epochs, views, output types, damaged images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import jpeg_bytes, picture, textured, write_beton
from helpers import beton_files
from helpers.loaders import epoch_of

from fastselfie import Loader, UserError, View
from fastselfie.data import draws

COUNT = 22
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)


@pytest.mark.parametrize("backend", ["native", "folder"])
def test_an_epoch_has_every_image_once(numbered, backend):
    with Loader(numbered, 5, size=32, backend=backend, workers=1) as loader:
        assert len(loader) == 5
        epochs = [epoch_of(loader) for _ in range(2)]
    for batches in epochs:
        assert [len(labels) for _, labels in batches] == [5, 5, 5, 5, 2]
        assert sorted(label for _, labels in batches for label in labels) == list(range(COUNT))
    orders = [[label for _, labels in batches for label in labels] for batches in epochs]
    assert orders == [draws.epoch_order(0, epoch, COUNT).tolist() for epoch in range(2)]


def test_without_shuffle_and_with_drop_last(numbered):
    loader = Loader(numbered, 5, size=32, shuffle=False, drop_last=True)
    assert len(loader) == 4
    assert [labels for _, labels in epoch_of(loader)] == [
        list(range(start, start + 5)) for start in range(0, 20, 5)
    ]


@pytest.mark.parametrize("crop", ["random_resized", "center", "pad"])
@pytest.mark.parametrize("backend", ["native", "folder", "resident"])
def test_pixels_of_every_dtype_are_those_of_uint8(numbered, backend, crop):
    if backend == "resident" and crop != "pad":
        with pytest.raises(ValueError, match="takes crop pad"):
            Loader(numbered, 8, size=32, crop=crop, backend=backend)
        return
    options = {"size": 32, "crop": crop, "backend": backend, "workers": 1}
    whole, labels = next(iter(Loader(numbered, 8, **options)))
    assert whole.shape == (8, 3, 32, 32)
    assert whole.dtype == torch.uint8
    assert whole.is_contiguous(memory_format=torch.channels_last)
    whole = whole.double() / 255
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (MEAN, STD))
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        plain, same = next(iter(Loader(numbered, 8, dtype=dtype, **options)))
        normalized, _ = next(iter(Loader(numbered, 8, dtype=dtype, mean=MEAN, std=STD, **options)))
        assert plain.dtype == normalized.dtype == dtype
        assert normalized.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(same, labels)
        # One rounding to the dtype, and of float32's product and sum before it.
        near = {"rtol": torch.finfo(dtype).eps, "atol": 2e-6 if dtype == torch.float32 else 0.02}
        assert torch.allclose(plain.double(), whole, **near)
        assert torch.allclose(normalized.double(), (whole - mean) / std, **near)


@pytest.mark.parametrize("crop", ["random_resized", "pad"])
@pytest.mark.parametrize("backend", ["native", "folder"])
def test_half_of_the_images_are_mirrored(numbered, backend, crop):
    """The mirror comes last, after the shift."""
    options = {"size": 32, "crop": crop, "backend": backend, "workers": 1, "shuffle": False}
    straight, _ = next(iter(Loader(numbered, COUNT, flip=False, **options)))
    flipped, _ = next(iter(Loader(numbered, COUNT, **options)))
    drawn = draws.flips(0, 0, np.arange(COUNT))
    assert 0 < drawn.sum() < COUNT
    for row, flip in enumerate(drawn):
        assert torch.equal(flipped[row], straight[row].flip(2) if flip else straight[row])


@pytest.mark.parametrize("backend", ["native", "folder"])
def test_several_views_are_drawn_alone_and_the_first_as_ever(numbered, backend):
    views = [View(32, area=(0.4, 1.0), count=2), View(16, area=(0.05, 0.4))]
    options = {"backend": backend, "workers": 1}
    images, labels = next(iter(Loader(numbered, 8, views=views, **options)))
    assert [tuple(view.shape) for view in images] == [(8, 3, 32, 32)] * 2 + [(8, 3, 16, 16)]
    assert not torch.equal(images[0], images[1])
    alone, same = next(iter(Loader(numbered, 8, size=32, area=(0.4, 1.0), **options)))
    assert torch.equal(images[0], alone)
    assert torch.equal(labels, same)


def test_crop_none_takes_one_size_alone(tmp_path):
    same = write_beton(tmp_path / "a.beton", [picture(i, 32, 32) for i in range(4)], range(4))
    images, _ = next(iter(Loader(same, 4, size=32, crop="none", shuffle=False)))
    for row in range(4):
        assert np.array_equal(images[row].permute(1, 2, 0), np.asarray(picture(row, 32, 32)))
    other = write_beton(tmp_path / "b.beton", [picture(0, 32, 30)], [0])
    for backend in ("native", "folder"):
        loader = Loader(other, 1, size=32, crop="none", backend=backend, workers=0)
        with pytest.raises(UserError, match=r"b\.beton.*32 x 30 pixels, and crop none takes 32 x"):
            next(iter(loader))


def write_damaged(path, bad, count=8):
    """`count` JPEGs; those of `bad` are cut short."""
    samples = []
    for i in range(count):
        data = jpeg_bytes(textured(i, 60, 60))
        samples.append((data[:60] if i in bad else data, "jpg", 60, 60, i))
    return beton_files.write(path, samples, classes=[str(i) for i in range(count)])


def test_what_is_skipped_is_counted(tmp_path):
    path = write_damaged(tmp_path / "a.beton", [3])
    with pytest.raises(UserError, match=r"a\.beton: sample 3"):
        epoch_of(Loader(path, 4, size=32))
    loader = Loader(path, 4, size=32, on_error="skip")
    assert sum(len(labels) for _, labels in epoch_of(loader)) == 8
    assert loader.skipped == 1


@pytest.mark.parametrize("backend", ["native", "folder"])
def test_where_a_whole_batch_is_bad_the_next_images_take_its_place(tmp_path, backend):
    """Pixels and labels are of one image, and batches keep their size."""
    options = {"size": 32, "shuffle": False, "workers": 1, "backend": backend}
    good = Loader(write_damaged(tmp_path / "good.beton", []), 1, **options)
    whole = [images[0] for images, _ in epoch_of(good)]
    path = write_damaged(tmp_path / "a.beton", [2, 3, 4, 7])
    for size, expected in (
        (1, [[0], [1], [5], [5], [5], [5], [6], [0]]),
        (2, [[0, 1], [5, 5], [5, 5], [6, 6]]),
        (3, [[0, 1, 0], [5, 5, 5], [6, 6]]),
    ):
        loader = Loader(path, size, flip=False, on_error="skip", crop="center", **options)
        assert [labels for _, labels in epoch_of(loader)] == expected
    loader = Loader(path, 1, on_error="skip", **options)
    for images, (label,) in epoch_of(loader):
        assert torch.equal(images[0], whole[label])


def test_a_set_without_a_good_image_stops(tmp_path):
    path = write_damaged(tmp_path / "a.beton", range(8))
    options = {"size": 32, "on_error": "skip", "shuffle": False}
    with pytest.raises(UserError, match=r"sample 0: .*first of 20 images in a row.* raise max_sk"):
        epoch_of(Loader(path, 3, max_skipped_in_a_row=20, **options))
    with pytest.raises(UserError, match=r"sample 0: .*\(as all 8 images of the set\)"):
        Loader(path, 3, crop="pad", **options)
