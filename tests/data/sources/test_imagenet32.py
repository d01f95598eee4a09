"""ImageNet 32x32: npz and Python batches, whole and damaged."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from helpers.datasets import dataset

from fastselfie.data.dataset import ArraySource
from fastselfie.errors import UserError


def imagenet_batch(seed, count):
    random = np.random.default_rng(seed)
    data = random.integers(0, 256, (count, 3072), dtype=np.uint8)
    return {"data": data, "labels": 1 + (np.arange(count) * 37 + seed) % 1000}


def write_npz(path, batch):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, mean=batch["data"].mean(axis=0), **batch)


def write_pickle(path, batch, protocol=4, encode=str):
    path.parent.mkdir(parents=True, exist_ok=True)
    fields = {**batch, "labels": batch["labels"].tolist(), "mean": batch["data"].mean(axis=0)}
    path.write_bytes(pickle.dumps({encode(k): v for k, v in fields.items()}, protocol=protocol))


def write_imagenet(root, kind, nested=True):
    """Ten training batches of 5, the last of 6, and 7 held-out images."""
    suffix, write = (".npz", write_npz) if kind == "npz" else ("", write_pickle)
    tail = "_npz" if kind == "npz" else ""
    train, val = (root / f"Imagenet32_{p}{tail}" if nested else root for p in ("train", "val"))
    batches = [imagenet_batch(i, 6 if i == 10 else 5) for i in range(1, 11)]
    for i, batch in enumerate(batches, start=1):
        write(train / f"train_data_batch_{i}{suffix}", batch)
    write(val / f"val_data{suffix}", imagenet_batch(0, 7))
    return batches


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("kind", ["npz", "python"])
def test_imagenet32(tmp_path, kind, nested):
    batches = write_imagenet(tmp_path, kind, nested)
    found = dataset(tmp_path)
    assert (len(found.train), len(found.held_out)) == (51, 7)
    assert len(found.train.classes) == 1000
    third = batches[2]["data"].reshape(5, 3, 32, 32).transpose(0, 2, 3, 1)
    assert np.array_equal(found.train.images[10:15], third)
    labels = np.concatenate([batch["labels"] for batch in batches]) - 1
    assert np.array_equal(found.train.labels, labels)


@pytest.mark.parametrize("protocol", [2, 5])
def test_imagenet32_in_any_pickle_protocol(tmp_path, protocol):
    write_imagenet(tmp_path, "python", nested=False)
    batch = imagenet_batch(1, 5)
    write_pickle(tmp_path / "train_data_batch_1", batch, protocol)
    assert np.array_equal(dataset(tmp_path).train.labels[:5], batch["labels"] - 1)


@pytest.mark.parametrize("damage", ["missing", "cut", "labels", "shape", "keys"])
@pytest.mark.parametrize("kind", ["npz", "python"])
def test_a_damaged_imagenet32_batch_is_named(tmp_path, kind, damage):
    write_imagenet(tmp_path, kind, nested=False)
    suffix, write = (".npz", write_npz) if kind == "npz" else ("", write_pickle)
    bad = tmp_path / f"train_data_batch_4{suffix}"
    batch = imagenet_batch(4, 5)
    if damage == "missing":
        bad.unlink()
    elif damage == "cut":
        bad.write_bytes(bad.read_bytes()[: bad.stat().st_size // 2])
    elif damage == "labels":
        write(bad, {**batch, "labels": batch["labels"] * 0})
    elif damage == "shape":
        write(bad, {**batch, "data": batch["data"][:, :3000]})
    elif kind == "npz":
        np.savez(bad, images=batch["data"])
    else:
        bad.write_bytes(pickle.dumps({"images": batch["data"]}))
    with pytest.raises(UserError, match="train_data_batch_4"):
        dataset(tmp_path)


class Evil:
    def __reduce__(self):
        return (print, ("a data file ran this",))


def test_an_imagenet32_pickle_is_not_run(tmp_path, capsys):
    write_imagenet(tmp_path, "python", nested=False)
    (tmp_path / "val_data").write_bytes(pickle.dumps({"data": Evil()}))
    with pytest.raises(UserError, match=r"val_data: not an ImageNet batch .*print"):
        dataset(tmp_path)
    assert capsys.readouterr().out == ""


def test_arrays_keep_no_file():
    source = ArraySource(np.zeros((3, 2, 2, 3), np.uint8), np.zeros(3, np.int64), ["a"], "file")
    assert source.encoded(0) is None
    assert len(source.select(np.asarray([2, 0]))) == 2
