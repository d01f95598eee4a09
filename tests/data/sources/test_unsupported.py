"""Well-known sets as they come, and what is no set, called by its name."""

from __future__ import annotations

import gzip
import os
import pickle
import struct

import numpy as np
import pytest
from conftest import picture, write_idx
from helpers.datasets import dataset

from fastselfie.data.dataset import open_part
from fastselfie.data.sources.base import ArraySource
from fastselfie.errors import UserError

CIFAR_10 = [
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
]


def pixels(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 28, 28), dtype=np.uint8)


def write_both(folder, images, labels, stem, sep="-", suffix=""):
    """IDX files of images and labels."""
    folder.mkdir(parents=True, exist_ok=True)
    write_idx(folder / f"{stem}-images{sep}idx3-ubyte{suffix}", images)
    write_idx(folder / f"{stem}-labels{sep}idx1-ubyte{suffix}", np.asarray(labels, np.uint8))


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_mnist_with_dots_in_its_names(tmp_path, suffix):
    write_both(tmp_path, pixels(20), np.arange(20) % 10, "train", ".", suffix)
    write_both(tmp_path, pixels(9), np.arange(9), "t10k", ".", suffix)
    found = dataset(tmp_path)
    assert (len(found.train), len(found.held_out), len(found.train.classes)) == (20, 9, 10)


def test_mnist_unpacked_to_folders_of_the_files_names(tmp_path):
    write_both(tmp_path, pixels(20), np.arange(20) % 10, "train")
    for path in list(tmp_path.iterdir()):
        path.rename(tmp_path / "file")
        path.mkdir()
        (tmp_path / "file").rename(path / path.name)
    assert len(open_part(tmp_path, "train").source) == 20


@pytest.mark.parametrize("place", ["MNIST/raw", "FashionMNIST/raw", "fashion-mnist"])
def test_mnist_inside_the_root_of_torchvision(tmp_path, place):
    write_both(tmp_path / place, pixels(20), np.arange(20) % 10, "train")
    write_both(tmp_path / place, pixels(10), np.arange(10), "t10k")
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"x")
    assert (len(dataset(tmp_path).train), len(dataset(tmp_path).held_out)) == (20, 10)


def test_several_sets_in_one_root_are_named(tmp_path):
    for name in ("MNIST", "KMNIST"):
        write_both(tmp_path / name / "raw", pixels(20), np.arange(20) % 10, "train")
    with pytest.raises(UserError, match=r"holds 2 datasets: pass one of KMNIST/raw, MNIST/raw"):
        dataset(tmp_path)


@pytest.mark.parametrize("mapped", [True, False])
def test_emnist_letters_are_upright_and_from_0(tmp_path, mapped):
    images = pixels(26)
    for part in ("train", "test"):
        write_both(tmp_path, images, np.arange(1, 27), f"emnist-letters-{part}", "-", ".gz")
    if mapped:
        lines = (f"{i} {64 + i} {96 + i}\n" for i in range(1, 27))
        (tmp_path / "emnist-letters-mapping.txt").write_text("".join(lines))
    found = dataset(tmp_path)
    assert isinstance(found.train, ArraySource)
    assert found.train.labels.tolist() == found.held_out.labels.tolist() == list(range(26))
    assert found.train.classes[2] == ("C" if mapped else "3")
    assert np.array_equal(found.train.images[3, 2:30, 2:30, 0], images[3].T)


def test_a_damaged_mapping_of_emnist_is_named(tmp_path):
    write_both(tmp_path, pixels(26), np.arange(1, 27), "emnist-letters-train")
    for text in ("<html>404</html>", "1"):
        (tmp_path / "emnist-letters-mapping.txt").write_text(text)
        with pytest.raises(UserError, match=r"letters-mapping\.txt: its lines are not LABEL CODE"):
            dataset(tmp_path)


def test_several_sets_of_emnist_in_one_folder_are_named(tmp_path):
    for name in ("digits", "letters"):
        write_both(tmp_path, pixels(9), np.arange(9), f"emnist-{name}-train")
    with pytest.raises(UserError, match=r"2 datasets \(emnist-digits, emnist-letters\): move"):
        dataset(tmp_path)


def test_qmnist_has_eight_columns_of_labels(tmp_path):
    table = np.zeros((10, 8), dtype=">i4")
    table[:, 0], table[:, 1] = np.arange(10), 300
    header = b"\0\0\x0c\2" + np.asarray(table.shape, ">u4").tobytes()
    for part in ("train", "test"):
        write_idx(tmp_path / f"qmnist-{part}-images-idx3-ubyte.gz", pixels(10))
        data = gzip.compress(header + table.tobytes())
        (tmp_path / f"qmnist-{part}-labels-idx2-int.gz").write_bytes(data)
    assert dataset(tmp_path).held_out.labels.tolist() == list(range(10))


def write_cifar_10(folder, names=True):
    folder.mkdir(parents=True)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        batch = {b"data": np.zeros((10, 3072), np.uint8), b"labels": list(range(10))}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    if names:
        note = {b"label_names": [name.encode() for name in CIFAR_10]}
        (folder / "batches.meta").write_bytes(pickle.dumps(note, protocol=2))


@pytest.mark.parametrize("inside", ["", "cifar-10-batches-py"])
def test_cifar_names_its_classes(tmp_path, inside):
    write_cifar_10(tmp_path / "data" / inside)
    found = dataset(tmp_path / "data")
    assert list(found.train.classes) == list(found.held_out.classes) == CIFAR_10


def test_cifar_and_the_file_prepared_from_it_are_the_same_images(tmp_path, cli):
    write_cifar_10(tmp_path / "cifar")
    for part in ("train", "test"):
        path = tmp_path / f"{part}.beton"
        assert cli("prepare", tmp_path / "cifar", "--out", path, "--part", part).status == 0
    prepared = dataset(tmp_path / "train.beton", test=str(tmp_path / "test.beton"))
    assert dataset(tmp_path / "cifar").fingerprint() == prepared.fingerprint()


def test_labels_of_idx_and_cifar_start_at_0(tmp_path):
    table = np.full((10, 8), -1, dtype=">i4")
    write_both(tmp_path / "idx", pixels(10), np.arange(10), "qmnist-train")
    header = b"\0\0\x0c\2" + struct.pack(">II", *table.shape)
    (tmp_path / "idx" / "qmnist-train-labels-idx1-ubyte").unlink()
    (tmp_path / "idx" / "qmnist-train-labels-idx2-int").write_bytes(header + table.tobytes())
    with pytest.raises(UserError, match="labels-idx2-int: a label is -1: number the classes from"):
        dataset(tmp_path / "idx")
    for name in ("train", "test"):
        batch = {b"data": np.zeros((2, 3072), np.uint8), b"fine_labels": [-1, 0]}
        (tmp_path / name).write_bytes(pickle.dumps(batch, protocol=2))
    with pytest.raises(UserError, match="a label is -1"):
        dataset(tmp_path)


def test_a_header_of_idx_that_is_cut_and_names_that_are_no_text(tmp_path):
    write_both(tmp_path / "idx", pixels(10), np.arange(10), "train")
    images = tmp_path / "idx" / "train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:6])
    with pytest.raises(UserError, match="holds 6 bytes, less than its header: download it again"):
        dataset(tmp_path / "idx")
    write_cifar_10(tmp_path / "cifar", names=False)
    (tmp_path / "cifar" / "batches.meta.txt").write_bytes("cat\ndog".encode("utf-16"))
    with pytest.raises(UserError, match=r"batches\.meta\.txt: not UTF-8 text"):
        dataset(tmp_path / "cifar")


def test_cifar_100_names_its_fine_classes(tmp_path):
    fine = [f"fine{i}" for i in range(100)]
    for name in ("train", "test"):
        batch = {b"data": np.zeros((100, 3072), np.uint8), b"fine_labels": list(range(100)),
                 b"coarse_labels": [0] * 100}  # fmt: skip
        (tmp_path / name).write_bytes(pickle.dumps(batch, protocol=2))
    note = {b"fine_label_names": fine, b"coarse_label_names": ["coarse"]}
    (tmp_path / "meta").write_bytes(pickle.dumps(note, protocol=2))
    assert list(dataset(tmp_path).train.classes) == fine
    (tmp_path / "meta").write_bytes(b"\x80 no pickle")
    with pytest.raises(UserError, match="meta: has no class names"):
        dataset(tmp_path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cifar-10-python.tar.gz", "archives are not supported: unpack it"),
        ("101_ObjectCategories.tar.gz", "archives are not supported: unpack it"),
        ("images.tar.gz", "archives are not supported: unpack it"),
        ("data.zip", "archives are not supported: unpack it"),
        ("CUB_200_2011.tgz", "archives are not supported: unpack it"),
        ("train_32x32.mat", "SVHN's MATLAB files are not supported"),
        ("stl10_binary/train_X.bin", "STL-10's binary files are not supported"),
        ("setid.mat", "MATLAB files are not supported"),
        ("camelyon_train_x.h5", "HDF5 files are not supported"),
        ("train.lmdb/data.mdb", "LMDB files are not supported"),
        ("a.tfrecord", "TFRecord files are not supported"),
        ("pathmnist.npz", "files of arrays and tables are not supported"),
        ("MNIST/processed/training.pt", "files of arrays and tables are not supported"),
        ("train.csv", "pixels in a table are not supported"),
        ("a/b/c/train.beton", "a .beton file is a dataset of its own: pass its path"),
        ("train.BETON", "its suffix is not in lower case: rename it to end in .beton"),
        ("train.beton.partial", "is incomplete: run the same `fastselfie prepare`"),
    ],
)
def test_what_is_no_set_is_called_by_its_name(tmp_path, name, words):
    path = tmp_path / "data" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x")
    with pytest.raises(UserError, match=f"data: no images: it holds {name}: {words}"):
        open_part(tmp_path / "data", "train")
    if path.suffix != ".beton":
        with pytest.raises(UserError, match=f"{name}: {words}"):
            open_part(path, "train")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("train-images-idx3-ubyte.gz", "one file of a dataset: pass the folder"),
        ("data_batch_1", "one file of a dataset: pass the folder"),
        ("a.png", "is one image: pass the folder"),
        ("x", "not a dataset: pass a folder of images"),
    ],
)
def test_one_file_of_a_set_is_no_set(tmp_path, name, words):
    picture(0).save(tmp_path / "picture.png")
    (tmp_path / "picture.png").rename(tmp_path / name)
    with pytest.raises(UserError, match=f"{name}: {words}"):
        open_part(tmp_path / name, "train")


def test_a_path_that_is_too_long_and_a_pipe_are_no_set(tmp_path):
    with pytest.raises(UserError, match="no such file or folder"):
        open_part(tmp_path / ("x" * 300), "train")
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(UserError, match="neither a file nor a folder"):
        open_part(tmp_path / "pipe.jpg", "train")
