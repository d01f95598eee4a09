"""What every loader owes: the same samples in the same order, whatever turns them into pixels."""

from __future__ import annotations

import gc
import multiprocessing
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import picture, tiny_config
from helpers.loaders import CPU, make_loader, take
from torch.utils.data import DataLoader

from fastselfie.data import draws
from fastselfie.data.dataset import open_dataset
from fastselfie.data.inputs import draw_masks
from fastselfie.data.loaders import SampleStream, choose_loader
from fastselfie.errors import UserError


def same(a, b):
    return (
        torch.equal(a.images, b.images)
        and torch.equal(a.labels, b.labels)
        and torch.equal(a.flip, b.flip)
        and np.array_equal(a.index.samples, b.index.samples)
    )


def shown(batch):
    """The batch with its flips applied: a loader may mirror images itself, or leave it."""
    flip = batch.flip[:, None, None, None]
    images = torch.where(flip, batch.images.flip(2), batch.images)
    return replace(batch, views=(images,), flips=(torch.zeros_like(batch.flip),))


def test_the_stream_is_every_sample_once_an_epoch_whatever_the_batch():
    stream = SampleStream(10, seed=0)
    whole = stream.take(0, 30)
    assert whole.epochs.tolist() == [0] * 10 + [1] * 10 + [2] * 10
    for epoch in range(3):
        assert sorted(whole.samples[10 * epoch : 10 * epoch + 10]) == list(range(10))
    for size in (1, 4, 7, 25):
        parts = [SampleStream(10, seed=0).take(s, min(size, 30 - s)) for s in range(0, 30, size)]
        assert np.concatenate([p.samples for p in parts]).tolist() == whole.samples.tolist()


@pytest.mark.parametrize("kind", ["folder", "resident", "synthetic"])
def test_a_batch_is_what_it_says(image_folder, kind):
    batch = take(make_loader(image_folder, kind).stream(0, 6), 1)[0]
    assert batch.images.shape == (6, 32, 32, 3)
    assert batch.images.dtype == torch.uint8
    assert batch.labels.dtype == torch.int64
    order = draw_masks(batch, 0, 16)
    assert order.shape == (6, 16)
    assert len(np.unique(order.numpy(), axis=0)) == 6
    parts = list(batch.split(4))
    assert [len(p.images) for p in parts] == [4, 2]
    assert torch.equal(torch.cat([draw_masks(p, 0, 16) for p in parts]), order)


@pytest.mark.parametrize("mode", ["zero", "reflect", "none"])
@pytest.mark.parametrize("workers", [0, 2])
def test_resident_equals_folder_pixel_by_pixel(image_folder, mode, workers):
    resident = make_loader(image_folder, "resident", pad_mode=mode)
    folder = make_loader(image_folder, "folder", pad_mode=mode, workers=workers)
    for a, b in zip(take(resident.stream(0, 6), 8), take(folder.stream(0, 6), 8), strict=True):
        assert same(shown(a), shown(b))


@pytest.mark.parametrize("augment", [False, True])
def test_the_gathers_of_resident_for_host_and_gpu_agree(image_folder, augment):
    """Its gather there is torch's, which runs on the host as well. Nothing is mirrored by it."""
    made = make_loader(image_folder, "resident", pad_mode="reflect", pad=4, flip=False)
    backend, view = made._backend, made._views[0]
    view = view if augment else view.without_augmentation()
    index = SampleStream(16, seed=3).take(0, 40)
    offsets = draws.shifts(3, index.epochs, index.samples, 4)
    on_host = backend._gather_on_host(index, offsets, view)
    on_device = backend._gather_on_device(index, offsets, view)
    assert torch.equal(on_host.views[0], on_device.views[0])
    assert torch.equal(on_host.labels, on_device.labels)
    assert not on_device.flipped


@pytest.mark.parametrize("kind", ["folder", "resident", "synthetic"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_stream_goes_on_exactly(image_folder, kind, workers):
    whole = take(make_loader(image_folder, kind).stream(0, 6), 9)  # 16 images: over three epochs
    rest = take(make_loader(image_folder, kind, workers=workers).stream(4 * 6, 6), 5)
    assert all(same(a, b) for a, b in zip(whole[4:], rest, strict=True))


@pytest.mark.parametrize("kind", ["folder", "resident", "synthetic"])
def test_evaluation_is_every_image_once_in_order_as_it_is(image_folder, kind):
    made = make_loader(image_folder, kind)
    batches = take(made.in_order(6, limit=16), 99)
    assert [len(b.images) for b in batches] == [6, 6, 4]
    spread = [i * len(made) // 16 for i in range(16)]  # all there are but of the synthetic ones
    assert np.concatenate([b.index.samples for b in batches]).tolist() == spread
    assert not any(b.flip.any() for b in batches)
    if kind != "synthetic":
        assert np.array_equal(batches[0].images[1].numpy(), np.asarray(picture(1)))
    some = take(made.in_order(6, limit=7), 99)
    assert [len(b.images) for b in some] == [6, 1]
    spread = [i * len(made) // 7 for i in range(7)]
    assert np.concatenate([b.index.samples for b in some]).tolist() == spread


def test_the_shift_is_the_one_drawn(image_folder):
    made = make_loader(image_folder, "resident", pad_mode="zero", pad=4, flip=False)
    batch = take(made.stream(0, 16), 1)[0]
    samples, epochs = batch.index
    shifts = draws.shifts(3, epochs, samples, 4)
    source = open_dataset(tiny_config(data={"train": str(image_folder)}).data).train
    for image, sample, (y, x) in zip(batch.images, samples, shifts, strict=True):
        padded = np.pad(np.asarray(source.image(int(sample))), ((4, 4), (4, 4), (0, 0)))
        assert np.array_equal(image.numpy(), padded[y : y + 32, x : x + 32])


def test_resized_crops_are_read_from_their_boxes(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(4):
            picture(i, 60 + i, 50).save(tmp_path / name / f"{i}.png")
    folder = make_loader(tmp_path, "folder", crop="resized", held_out=0.25)
    batch = take(folder.stream(0, 6), 1)[0]
    samples, epochs = batch.index
    for row, sample in enumerate(samples):
        image = folder.source.image(int(sample))
        sizes = np.array([image.size])
        box = draws.resized_crops(3, epochs[row : row + 1], samples[row : row + 1], sizes,
                                (0.08, 1.0), (3 / 4, 4 / 3))[0]  # fmt: skip
        left, top, width, height = box.tolist()
        cropped = image.crop((left, top, left + width, top + height)).resize((32, 32), 2)
        assert np.array_equal(batch.images[row].numpy(), np.asarray(cropped))


def test_evaluation_of_large_images_is_the_centre(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(2):
            picture(i, 128, 64).save(tmp_path / name / f"{i}.png")
    folder = make_loader(tmp_path, "folder", crop="resized", held_out=0.5)
    image = folder.source.image(0)
    centre = image.crop((36, 4, 92, 60)).resize((32, 32), 2)  # 7/8 of the short side
    assert np.array_equal(take(folder.in_order(1), 1)[0].images[0].numpy(), np.asarray(centre))


@pytest.mark.parametrize("kind", ["folder", "resident"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_image_is_one_clear_line(image_folder, kind, workers):
    (image_folder / "train" / "dog" / "5.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"dog/5\.png: unreadable image") as caught:
        take(make_loader(image_folder, kind, workers=workers).stream(0, 16), 1)
    assert "\n" not in str(caught.value)


def test_workers_end_with_an_epoch_left_early(image_folder):
    for _ in range(3):
        take(make_loader(image_folder, "folder", workers=2).stream(0, 2), 2)
    gc.collect()
    assert multiprocessing.active_children() == []


def test_a_worker_killed_with_a_lock_in_its_hands_does_not_hang_the_end(image_folder, monkeypatch):
    def kill(worker):
        original(worker)
        if not locks:  # of what torch tells its workers to end with
            iterator = made[0]
            locks.append(iterator._workers_done_event._cond._lock)
            locks[0].acquire()

    def make(loader):
        made.append(original_iter(loader))
        return made[-1]

    def hangs(*_):
        raise AssertionError("the end of the workers waits for ever")

    locks, made = [], []
    original, original_iter = multiprocessing.process.BaseProcess.kill, DataLoader.__iter__
    monkeypatch.setattr(multiprocessing.process.BaseProcess, "kill", kill)
    monkeypatch.setattr(DataLoader, "__iter__", make)
    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(60)
    try:
        take(make_loader(image_folder, "folder", workers=2).stream(0, 2), 2)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert locks
    assert multiprocessing.active_children() == []


def test_auto_says_why(image_folder):
    def choose(**data):
        config = tiny_config(data={"train": str(image_folder), **data})
        return choose_loader(config.data, open_dataset(config.data).train, CPU)

    assert choose()[0] == "resident"
    assert "MB on cpu" in choose()[1]
    assert choose(crop="resized")[0] == "folder"
    assert "fastselfie prepare" in choose(crop="resized")[1]
    assert choose(loader="folder") == ("folder", "data.loader: folder")


def test_resident_scales_other_sizes_down(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(2):
            picture(i, 100, 70).save(tmp_path / name / f"{i}.png")
    expected = {
        picture(i, 100, 70).crop((15, 0, 85, 70)).resize((32, 32), 2).tobytes() for i in range(2)
    }
    batch = take(make_loader(tmp_path, "resident", held_out=0.5).in_order(2), 1)[0]
    assert {image.numpy().tobytes() for image in batch.images} <= expected
