"""The public Loader: epochs, views, output types, state, ranks, and its ends."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from conftest import jpeg_bytes, picture, textured, write_beton
from helpers import beton_files

from fastselfie import Loader, UserError, View, open_dataset
from fastselfie.config import DataConfig
from fastselfie.data import draws
from fastselfie.data.loaders.sampling import one_epoch
from fastselfie.system.distributed import Ranks

COUNT = 22
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)


@pytest.fixture(scope="module")
def beton(tmp_path_factory):
    """20 JPEGs of several sizes and 2 raw images; the label is the number."""
    images = [jpeg_bytes(textured(i, 50 + 3 * i, 90 - 2 * i)) for i in range(20)]
    images += [picture(i, 60, 50) for i in range(2)]
    path = tmp_path_factory.mktemp("loader") / "a.beton"
    return write_beton(path, images, range(COUNT))


def epoch_of(loader):
    """Copies: the loader fills a batch's memory again once nobody holds it."""
    return [(images.clone(), labels.tolist()) for images, labels in loader]


@pytest.mark.parametrize("backend", ["native", "folder"])
def test_an_epoch_has_every_image_once(beton, backend):
    with Loader(beton, 5, size=32, backend=backend, workers=1) as loader:
        assert len(loader) == 5
        epochs = [epoch_of(loader) for _ in range(2)]
    for batches in epochs:
        assert [len(labels) for _, labels in batches] == [5, 5, 5, 5, 2]
        assert sorted(label for _, labels in batches for label in labels) == list(range(COUNT))
    orders = [[label for _, labels in batches for label in labels] for batches in epochs]
    assert orders == [draws.epoch_order(0, epoch, COUNT).tolist() for epoch in range(2)]


def test_without_shuffle_and_with_drop_last(beton):
    loader = Loader(beton, 5, size=32, shuffle=False, drop_last=True)
    assert len(loader) == 4
    assert [labels for _, labels in epoch_of(loader)] == [
        list(range(start, start + 5)) for start in range(0, 20, 5)
    ]


@pytest.mark.parametrize("crop", ["random_resized", "center", "pad"])
@pytest.mark.parametrize("backend", ["native", "folder", "resident"])
def test_pixels_of_every_dtype_are_those_of_uint8(beton, backend, crop):
    if backend == "resident" and crop != "pad":
        with pytest.raises(ValueError, match="takes crop pad"):
            Loader(beton, 8, size=32, crop=crop, backend=backend)
        return
    options = {"size": 32, "crop": crop, "backend": backend, "workers": 1}
    whole, labels = next(iter(Loader(beton, 8, **options)))
    assert whole.shape == (8, 3, 32, 32)
    assert whole.dtype == torch.uint8
    assert whole.is_contiguous(memory_format=torch.channels_last)
    whole = whole.double() / 255
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (MEAN, STD))
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        plain, same = next(iter(Loader(beton, 8, dtype=dtype, **options)))
        normalized, _ = next(iter(Loader(beton, 8, dtype=dtype, mean=MEAN, std=STD, **options)))
        assert plain.dtype == normalized.dtype == dtype
        assert normalized.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(same, labels)
        # One rounding to the dtype, and of float32's product and sum before it.
        near = {"rtol": torch.finfo(dtype).eps, "atol": 2e-6 if dtype == torch.float32 else 0.02}
        assert torch.allclose(plain.double(), whole, **near)
        assert torch.allclose(normalized.double(), (whole - mean) / std, **near)


@pytest.mark.parametrize("crop", ["random_resized", "pad"])
@pytest.mark.parametrize("backend", ["native", "folder"])
def test_half_of_the_images_are_mirrored(beton, backend, crop):
    """The mirror comes last, after the shift."""
    options = {"size": 32, "crop": crop, "backend": backend, "workers": 1, "shuffle": False}
    straight, _ = next(iter(Loader(beton, COUNT, flip=False, **options)))
    flipped, _ = next(iter(Loader(beton, COUNT, **options)))
    drawn = draws.flips(0, 0, np.arange(COUNT))
    assert 0 < drawn.sum() < COUNT
    for row, flip in enumerate(drawn):
        assert torch.equal(flipped[row], straight[row].flip(2) if flip else straight[row])


@pytest.mark.parametrize("backend", ["native", "folder"])
def test_several_views_are_drawn_alone_and_the_first_as_ever(beton, backend):
    views = [View(32, area=(0.4, 1.0), count=2), View(16, area=(0.05, 0.4))]
    options = {"backend": backend, "workers": 1}
    images, labels = next(iter(Loader(beton, 8, views=views, **options)))
    assert [tuple(view.shape) for view in images] == [(8, 3, 32, 32)] * 2 + [(8, 3, 16, 16)]
    assert not torch.equal(images[0], images[1])
    alone, same = next(iter(Loader(beton, 8, size=32, area=(0.4, 1.0), **options)))
    assert torch.equal(images[0], alone)
    assert torch.equal(labels, same)


def test_backends_of_one_view_refuse_several(beton):
    with pytest.raises(ValueError, match="use native or folder for 2 views"):
        Loader(beton, 8, views=[View(16, crop="pad", count=2)], backend="resident")


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


@pytest.mark.parametrize("done", [0, 1, 3, 5, 6])
def test_a_state_goes_on_in_the_middle_of_an_epoch(beton, done):
    """At the end of one too; with another batch size and number of workers the images follow."""
    loader = Loader(beton, 5, size=32, seed=7)
    straight = [batch for _ in range(3) for batch in epoch_of(loader)]
    loader = Loader(beton, 5, size=32, seed=7)
    seen, state = 0, loader.state_dict()
    while seen < done:
        for _ in loader:
            seen += 1
            state = loader.state_dict()
            if seen == done:
                break
    resumed = Loader(beton, 5, size=32, seed=7, workers=1)
    resumed.load_state_dict(state)
    rest = [batch for _ in range(resumed.epoch, 3) for batch in epoch_of(resumed)]
    assert len(rest) == len(straight) - done
    for (images, labels), (others, theirs) in zip(rest, straight[done:], strict=True):
        assert labels == theirs
        assert torch.equal(images, others)
    other = Loader(beton, 3, size=32, seed=7)
    other.load_state_dict(state)
    rest = [
        label for _ in range(other.epoch, 3) for _, labels in epoch_of(other) for label in labels
    ]
    assert rest == [label for _, labels in straight[done:] for label in labels]


def test_set_epoch_keeps_the_place_of_its_own_epoch_alone(beton):
    loader = Loader(beton, 5, size=32)
    next(iter(loader))
    state = loader.state_dict()
    for epoch, count in ((0, 4), (3, 5)):
        resumed = Loader(beton, 5, size=32)
        resumed.load_state_dict(state)
        resumed.set_epoch(epoch)
        assert len(epoch_of(resumed)) == count
        assert resumed.epoch == epoch + 1


def test_a_state_of_another_loader_is_refused(beton):
    state = Loader(beton, 5, size=32).state_dict()
    for changes in ({"seed": 1}, {"images": 3}, {"version": 0}, {"shuffle": False}):
        with pytest.raises(ValueError, match=f"state has {next(iter(changes))} = "):
            Loader(beton, 5, size=32).load_state_dict(state | changes)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_ranks_share_an_epoch(beton, world):
    """As many batches and images on each; together every image, a few twice at the end."""
    seen = [
        [labels for _, labels in epoch_of(Loader(beton, 4, size=16, rank=r, world_size=world))]
        for r in range(world)
    ]
    assert len({tuple(map(len, batches)) for batches in seen}) == 1
    labels = [label for batches in seen for batch in batches for label in batch]
    assert set(labels) == set(range(COUNT))
    assert len(labels) - COUNT < world
    whole = [label for batch in zip(*seen, strict=True) for part in batch for label in part]
    assert whole[:COUNT] == draws.epoch_order(0, 0, COUNT).tolist()


def test_more_ranks_than_images_in_the_last_batch():
    parts = [list(one_epoch(np.arange(3), 0, 0, 2, False, Ranks(r, 5))) for r in range(5)]
    assert [[p.samples.tolist() for p in part] for part in parts] == [
        [[0]],
        [[1]],
        [[2]],
        [[0]],
        [[1]],
    ]


def test_what_is_skipped_is_counted(tmp_path):
    images = [jpeg_bytes(textured(i, 60, 60)) for i in range(8)]
    images[3] = images[3][:60]
    samples = [(data, "jpg", 60, 60, i % 2) for i, data in enumerate(images)]
    path = beton_files.write(tmp_path / "a.beton", samples)
    with pytest.raises(UserError, match=r"a\.beton: sample 3"):
        epoch_of(Loader(path, 4, size=32))
    loader = Loader(path, 4, size=32, on_error="skip")
    assert sum(len(labels) for _, labels in epoch_of(loader)) == 8
    assert loader.skipped == 1


def test_after_close_there_is_one_clear_line(beton):
    loader = Loader(beton, 5, size=32)
    batches = iter(loader)
    next(batches)
    loader.close()
    loader.close()
    for use in (lambda: next(batches), lambda: iter(loader)):
        with pytest.raises(RuntimeError, match="this Loader is closed: make a new one"):
            use()


def threads():
    with open("/proc/self/status") as status:
        return next(int(x.split()[1]) for x in status if x.startswith("Threads:"))


@pytest.mark.parametrize("end", ["drop", "close", "again"])
def test_no_thread_outlives_an_epoch_left_early(beton, end):
    next(iter(Loader(beton, 5, size=32, workers=3)))  # what torch starts once
    gc.collect()
    before = threads(), threading.active_count()
    loader = Loader(beton, 5, size=32, workers=3)
    batches = iter(loader)
    next(batches)
    assert threads() > before[0]
    if end == "close":
        loader.close()
    elif end == "again":
        for _ in loader:
            pass
    else:
        del loader, batches  # no collection needed: nothing is in a circle
    assert (threads(), threading.active_count()) == before


def test_a_fork_is_told_to_make_its_own(beton):
    loader = Loader(beton, 5, size=32)
    batches = iter(loader)
    next(batches)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            next(batches)
        except RuntimeError as error:
            os.write(write, str(error).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert b"belongs to the process that made it" in os.read(read, 1000)
    assert len(list(batches)) == 4


def test_a_program_may_end_in_the_middle_of_an_epoch(beton):
    code = f"from fastselfie import Loader; b = iter(Loader({str(beton)!r}, 5, size=32)); next(b)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, timeout=100, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"batch_size": 0}, ValueError, "batch_size is 0"),
        ({"batch_size": 2.5}, TypeError, "batch_size is 2.5"),
        ({"size": 0}, ValueError, "size is 0"),
        ({"crop": "centre"}, ValueError, "crop is 'centre'.*random_resized, center"),
        ({"area": (0.5, 0.1)}, ValueError, "area is"),
        ({"ratio": (0, 1)}, ValueError, "ratio is"),
        ({"crop": "pad", "pad": 99}, ValueError, "pad is 99"),
        ({"pad_mode": "wrap"}, ValueError, "pad_mode is 'wrap'"),
        ({"views": []}, ValueError, "views is empty"),
        ({"views": [32]}, TypeError, "views holds 32"),
        ({"views": [View(16)], "size": 16}, ValueError, "views is given"),
        ({"dtype": torch.int32}, ValueError, "dtype is torch.int32"),
        ({"mean": MEAN}, ValueError, "need a dtype of floats"),
        ({"dtype": torch.float32, "mean": (1, 2)}, ValueError, "mean is"),
        ({"seed": -1}, ValueError, "seed is -1"),
        ({"seed": 2**32}, ValueError, "seed is 4294967296"),
        ({"size": True}, TypeError, "size is True"),
        ({"crop": "pad", "pad": 1.5}, TypeError, "pad is 1.5"),
        ({"area": 0.5}, TypeError, "area is 0.5"),
        ({"ratio": (1.0,)}, ValueError, "ratio is"),
        ({"views": View(32)}, TypeError, "views is View"),
        ({"dtype": torch.float32, "mean": 0.5}, TypeError, "mean is 0.5"),
        ({"dtype": torch.float32, "std": (0, 1, 1)}, ValueError, "std is"),
        ({"device": "mps"}, ValueError, "device is mps"),
        ({"device": "cuda:99"}, ValueError, "device is cuda:99"),
        ({"workers": 5000}, ValueError, "workers is 5000"),
        ({"max_skipped_in_a_row": 0}, ValueError, "max_skipped_in_a_row is 0"),
        ({"batch_size": 99, "drop_last": True}, ValueError, "drop_last leaves no batch"),
        ({"part": "Val"}, ValueError, "part is 'Val'"),
        ({"workers": -1}, ValueError, "workers is -1"),
        ({"rank": 0}, ValueError, "rank and world_size"),
        ({"rank": 2, "world_size": 2}, ValueError, "rank is 2"),
        ({"on_error": "ignore"}, ValueError, "on_error is 'ignore'"),
        ({"backend": "turbo"}, ValueError, "backend is 'turbo'"),
    ],
)
def test_a_wrong_argument_is_named(beton, options, error, named):
    with pytest.raises(error, match=named):
        Loader(beton, **{"batch_size": 4, "size": 32, **options})


def test_data_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        Loader(tmp_path / "nowhere", 4)
    with pytest.raises(TypeError, match="data is a int: it must be a path"):
        Loader(7, 4)
    with pytest.raises(ValueError, match="data is empty"):
        Loader("", 4)


def test_each_part_is_the_one_of_that_name(tmp_path):
    """Not the held-out part that training would choose."""
    for part, count in (("train", 6), ("valid", 4), ("test", 2)):
        for label in ("a", "b"):
            folder = tmp_path / part / label
            folder.mkdir(parents=True)
            for number in range(count):
                picture(number, 20, 20).save(folder / f"{number}.png")
    sizes = {
        part: len(Loader(tmp_path, 1, size=16, part=part)) for part in ("train", "val", "test")
    }
    assert sizes == {"train": 12, "val": 8, "test": 4}
    shutil.rmtree(tmp_path / "valid")
    with pytest.raises(UserError, match="holds no val images"):
        Loader(tmp_path, 1, part="val")
    assert len(Loader(tmp_path / "test", 1, part="val")) == 4  # it has no parts


def test_an_epoch_that_another_one_ended_says_so(beton):
    loader = Loader(beton, 5, size=32)
    first = iter(loader)
    next(first)
    next(iter(loader))
    with pytest.raises(RuntimeError, match=r"another iter\(\) of this Loader"):
        next(first)


def test_close_from_another_thread_ends_the_epoch(beton):
    loader = Loader(beton, 1, size=32)
    batches, seen = iter(loader), []

    def read():
        for _ in range(2):
            try:
                next(batches)
                seen.append("a batch")
            except RuntimeError as error:
                seen.append(str(error))
            closing.set()
            loader_closed.wait(10)

    closing, loader_closed = threading.Event(), threading.Event()
    reader = threading.Thread(target=read)
    reader.start()
    closing.wait(60)
    loader.close()
    loader_closed.set()
    reader.join(60)
    assert not reader.is_alive()
    assert seen == ["a batch", "this Loader is closed: make a new one"]


def test_the_end_of_an_epoch_is_the_start_of_the_next(beton):
    """Also where the rest is too small for another batch size."""
    state = Loader(beton, 4, size=32).state_dict() | {"epoch": 2, "samples": 16}
    loader = Loader(beton, 8, size=32, drop_last=True)
    loader.load_state_dict(state)
    assert loader.epoch == 3
    assert loader.state_dict()["samples"] == 0
    loader.set_epoch(7)
    assert loader.state_dict()["epoch"] == 7


def test_a_loader_is_not_copied(beton):
    for copy_of in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError, match="cannot be copied or pickled"):
            copy_of(Loader(beton, 5, size=32))


def test_a_batch_of_bad_images_alone_says_why_it_stops(tmp_path):
    data = jpeg_bytes(textured(1, 60, 60))
    samples = [(data, "jpg", 60, 60, 0), (data[:60], "jpg", 60, 60, 1)]
    path = beton_files.write(tmp_path / "a.beton", samples)
    with pytest.raises(UserError, match="no image in its batch of 1 can replace it"):
        epoch_of(Loader(path, 1, size=32, on_error="skip"))


def test_a_source_of_open_dataset_is_taken(image_folder):
    dataset = open_dataset(DataConfig(train=str(image_folder)))
    loader = Loader(dataset.held_out, 4, size=32, crop="center", shuffle=False, workers=0)
    assert loader.classes == ["cat", "dog"]
    assert sum(len(labels) for _, labels in epoch_of(loader)) == len(dataset.held_out)
