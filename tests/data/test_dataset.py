"""Every layout of images, good and bad."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from conftest import picture, tiny_config, write_idx
from PIL import Image

from fastselfie.data.dataset import ArraySource, Source, open_dataset, open_part
from fastselfie.errors import UserError


def dataset(folder, **data):
    return open_dataset(tiny_config(data={"train": str(folder), **data}).data)


def test_image_folder_with_train_and_test(image_folder):
    found = dataset(image_folder)
    assert (len(found.train), len(found.held_out)) == (16, 8)
    assert list(found.train.classes) == ["cat", "dog"]
    assert found.train.labels.tolist() == [0] * 8 + [1] * 8
    assert np.array_equal(np.asarray(found.train.image(9)), np.asarray(picture(1001)))
    assert found.train.name(9).endswith("train/dog/1.png")


def test_image_folder_without_parts_holds_out_a_share_of_each_class(image_folder):
    found = dataset(image_folder / "train", held_out=0.25)
    assert np.bincount(found.held_out.labels).tolist() == [2, 2]
    assert np.bincount(found.train.labels).tolist() == [6, 6]
    assert not set(found.train.paths) & set(found.held_out.paths)
    again = dataset(image_folder / "train", held_out=0.25)
    assert again.held_out.paths == found.held_out.paths


def test_a_flat_folder_is_one_class(tmp_path):
    for i in range(10):
        picture(i).save(tmp_path / f"{i}.png")
    (tmp_path / "._0.png").write_bytes(b"metadata of a Mac")
    (tmp_path / ".thumbnails").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    found = dataset(tmp_path, held_out=0.2)
    assert (len(found.train), len(found.held_out)) == (8, 2)
    assert found.train.classes == found.held_out.classes == ("images",)
    assert set(found.train.labels) == {0}


def test_16_bit_samples_are_scaled_and_not_clipped(tmp_path):
    levels = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(levels).save(tmp_path / "a.png")
    rows = np.asarray(open_part(tmp_path, "train").source.image(0))
    assert np.array_equal(rows[..., 0], np.arange(256).reshape(16, 16))


def test_float_samples_are_refused(tmp_path):
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match=r"a\.tif: unreadable image .*floats"):
        open_part(tmp_path, "train").source.image(0)


def test_one_image_a_class_is_split_as_a_whole(tmp_path):
    for i in range(20):
        (tmp_path / "train" / f"c{i:02}").mkdir(parents=True)
        picture(i).save(tmp_path / "train" / f"c{i:02}" / "a.png")
    found = dataset(tmp_path, held_out=0.1)
    assert (len(found.train), len(found.held_out)) == (18, 2)


def test_held_out_images_that_are_the_training_images_are_noticed(image_folder, idx_folder):
    """A set without parts is whatever part is asked for; one with parts has its own."""
    train = image_folder / "train"
    for part, test in ((train, train), (image_folder, train), (train, f"{train}/../train")):
        assert f"{test}: the held-out images are the" in dataset(part, test=str(test)).warning
    for part, test in ((image_folder, image_folder), (train, image_folder / "test"),
                       (idx_folder, idx_folder)):  # fmt: skip
        assert not dataset(part, test=str(test)).warning
    assert not dataset(train).warning


def test_limit_takes_the_same_images_of_each_part(image_folder):
    found = dataset(image_folder, limit=5)
    assert (len(found.train), len(found.held_out)) == (5, 5)
    assert found.train.paths == dataset(image_folder, limit=5).train.paths


def test_gray_palette_alpha_and_cmyk_become_rgb(tmp_path):
    folder = tmp_path / "a" / "x"
    folder.mkdir(parents=True)
    (tmp_path / "b").mkdir()
    for mode, suffix in (
        ("L", "png"),
        ("P", "png"),
        ("RGBA", "png"),
        ("CMYK", "jpg"),
        ("1", "png"),
    ):
        picture(0).convert(mode).save(folder / f"{mode}.{suffix}")
    picture(1).save(tmp_path / "b" / "b.webp")
    found = dataset(tmp_path, held_out=0.5)
    for source in (found.train, found.held_out):
        for i in range(len(source)):
            assert source.image(i).mode == "RGB"


def test_fashion_mnist_is_padded_and_tripled(idx_folder):
    found = dataset(idx_folder)
    assert (len(found.train), len(found.held_out)) == (40, 20)
    images = found.train.images
    assert images.shape == (40, 32, 32, 3)
    assert (images[..., 0] == images[..., 2]).all()
    assert images[:, :2].max() == images[:, -2:].max() == images[:, :, :2].max() == 0
    assert images[:, 2:30, 2:30].max() > 0
    assert found.train.labels[:5].tolist() == [0, 1, 2, 3, 0]


def cifar(count, seed):
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
    return images, (np.arange(count) % 10).astype(np.uint8)


@pytest.fixture
def cifar_parts():
    return {f"data_batch_{i}": cifar(20, i) for i in range(1, 6)} | {"test_batch": cifar(10, 9)}


def check_cifar(found, parts):
    assert (len(found.train), len(found.held_out)) == (100, 10)
    images, labels = parts["data_batch_2"]
    assert np.array_equal(found.train.images[20:40], images.transpose(0, 2, 3, 1))
    assert found.train.labels[20:40].tolist() == labels.tolist()


def test_cifar_binary(tmp_path, cifar_parts):
    for name, (images, labels) in cifar_parts.items():
        records = np.concatenate([labels[:, None], images.reshape(len(images), -1)], axis=1)
        (tmp_path / f"{name}.bin").write_bytes(records.tobytes())
    (tmp_path / "batches.meta.txt").write_text("\n".join(f"class{i}" for i in range(10)))
    found = dataset(tmp_path)
    check_cifar(found, cifar_parts)
    assert found.train.classes[3] == "class3"


def write_python_batch(path, images, labels, **more):
    batch = {b"data": images.reshape(len(images), -1), b"labels": labels.tolist(), **more}
    path.write_bytes(pickle.dumps(batch, protocol=2))


def test_cifar_python(tmp_path, cifar_parts):
    for name, part in cifar_parts.items():
        write_python_batch(tmp_path / name, *part)
    check_cifar(dataset(tmp_path), cifar_parts)


def test_cifar_100_binary_reads_the_fine_label(tmp_path):
    for name in ("train.bin", "test.bin"):
        images, labels = cifar(30, 0)
        coarse = np.full((30, 1), 7, dtype=np.uint8)
        records = np.concatenate([coarse, labels[:, None], images.reshape(30, -1)], axis=1)
        (tmp_path / name).write_bytes(records.tobytes())
    assert dataset(tmp_path).train.labels[:4].tolist() == [0, 1, 2, 3]


class Evil:
    def __reduce__(self):
        return (print, ("a data file ran this",))


def test_a_pickle_that_names_a_callable_is_not_run(tmp_path, cifar_parts, capsys):
    for name, part in cifar_parts.items():
        write_python_batch(tmp_path / name, *part, extra=Evil())
    with pytest.raises(
        UserError, match=r"data_batch_1: not a CIFAR batch .*print, which a batch never"
    ):
        dataset(tmp_path)
    assert capsys.readouterr().out == ""


def truncated(path):
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("kind", ["missing", "file", "empty", "mixed", "other_class"])
def test_a_wrong_folder_is_named(tmp_path, kind):
    folder = tmp_path / "data"
    words = {
        "missing": "data: no such file or folder",
        "file": "data: not a dataset",
        "empty": "data: no images in it or in its sub-folders: it is empty",
        "mixed": r"has loose images \(a.png\) beside sub-folders of images \(dog\)",
        "other_class": "its classes c are not those of the training images, a, b, which lack c",
    }[kind]
    if kind == "file":
        folder.write_text("x")
    elif kind != "missing":
        folder.mkdir()
    if kind == "mixed":
        (folder / "cat").mkdir()
        (folder / "dog").mkdir()
        picture(0).save(folder / "a.png")
        picture(0).save(folder / "dog" / "b.png")
    if kind == "other_class":
        for name in ("train/a", "train/b", "test/c"):
            (folder / name).mkdir(parents=True)
            picture(0).save(folder / name / "i.png")
    with pytest.raises(UserError, match=words):
        dataset(folder)


def test_no_data_at_all_says_what_to_give():
    with pytest.raises(UserError, match=r"data\.train is not set.*data\.train=DIR"):
        open_dataset(tiny_config().data)


def test_hidden_files_and_folders_are_no_images(image_folder):
    """What notebooks and file managers leave behind."""
    (image_folder / "train" / ".ipynb_checkpoints").mkdir()
    picture(0).save(image_folder / "train" / ".ipynb_checkpoints" / "0.png")
    (image_folder / "train" / "cat" / "._0.png").write_bytes(b"resource fork")
    found = dataset(image_folder)
    assert list(found.train.classes) == ["cat", "dog"]
    assert len(found.train) == 16


def test_a_class_without_images_is_named(image_folder):
    (image_folder / "train" / "eel").mkdir()
    with pytest.raises(UserError, match=r"train/eel: a class without images"):
        dataset(image_folder)


def test_an_empty_idx_file_is_named(idx_folder):
    (idx_folder / "train-images-idx3-ubyte.gz").unlink()
    (idx_folder / "train-labels-idx1-ubyte.gz").unlink()
    write_idx(idx_folder / "train-images-idx3-ubyte", np.zeros((0, 28, 28), np.uint8))
    write_idx(idx_folder / "train-labels-idx1-ubyte", np.zeros(0, np.uint8))
    with pytest.raises(UserError, match="holds no images"):
        dataset(idx_folder)


def test_the_fingerprint_is_of_both_parts_classes_and_labels(image_folder, tmp_path):
    first = dataset(image_folder).fingerprint()
    assert dataset(image_folder).fingerprint() == first
    (image_folder / "test" / "cat" / "0.png").unlink()
    second = dataset(image_folder).fingerprint()
    (image_folder / "train" / "cat").rename(image_folder / "train" / "cow")
    (image_folder / "test" / "cat").rename(image_folder / "test" / "cow")
    third = dataset(image_folder).fingerprint()
    noise = dataset(image_folder, loader="synthetic").fingerprint()
    assert len({first, second, third, noise}) == 4


@pytest.mark.parametrize("content", [b"", b"not an image", b"\xff\xd8\xff\xe0 cut"])
def test_an_unreadable_image_is_named(image_folder, content):
    bad = image_folder / "train" / "cat" / "3.png"
    bad.write_bytes(content)
    with pytest.raises(UserError, match=r"cat/3\.png: unreadable image") as caught:
        dataset(image_folder).train.image(3)
    assert "\n" not in str(caught.value)


def test_a_truncated_image_is_an_error_and_not_gray(image_folder):
    bad = image_folder / "train" / "cat" / "3.jpg"
    picture(0, 64, 64).save(bad, quality=95)
    bad.write_bytes(bad.read_bytes()[:-400])
    source = dataset(image_folder).train
    with pytest.raises(UserError, match=r"3\.jpg: unreadable"):
        source.image([source.name(i) for i in range(len(source))].index(str(bad)))


@pytest.mark.parametrize("damage", ["short", "magic", "labels", "gzip", "count"])
def test_a_damaged_idx_file_is_named(idx_folder, damage):
    images = idx_folder / "train-images-idx3-ubyte.gz"
    labels = idx_folder / "train-labels-idx1-ubyte"
    if damage == "short":
        images.unlink()
        images = images.with_suffix("")
        write_idx(images, np.zeros((40, 28, 28), np.uint8))
        truncated(images)
    elif damage == "magic":
        images.unlink()
        images.with_suffix("").write_bytes(b"PNG?" * 9)
    elif damage == "gzip":
        truncated(images)
    elif damage == "labels":
        labels.with_suffix(".gz").unlink()
    else:
        labels.with_suffix(".gz").unlink()
        write_idx(labels, np.zeros(39, np.uint8))
    with pytest.raises(UserError, match=str(idx_folder)):
        dataset(idx_folder)


@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_a_damaged_cifar_batch_is_named(tmp_path, cifar_parts, damage):
    for name, (images, labels) in cifar_parts.items():
        records = np.concatenate([labels[:, None], images.reshape(len(images), -1)], axis=1)
        (tmp_path / f"{name}.bin").write_bytes(records.tobytes())
    bad = tmp_path / "data_batch_3.bin"
    bad.unlink() if damage == "missing" else truncated(bad)
    with pytest.raises(UserError, match=r"data_batch_3\.bin"):
        dataset(tmp_path)


def test_synthetic_needs_no_files():
    found = open_dataset(tiny_config(data={"loader": "synthetic", "limit": 100}).data)
    assert len(found.train) == 100
    with pytest.raises(UserError, match="synthetic image 0 has no file"):
        found.train.image(0)


def test_an_array_is_named_by_its_number():
    source = ArraySource(np.zeros((3, 2, 2, 3), np.uint8), np.zeros(3, np.int64), ["a"], "file")
    assert isinstance(source, Source)
    assert not isinstance(["a.png"], Source)
    assert source.name(2) == "file, image 2"
    assert source.image(0).size == (2, 2)
