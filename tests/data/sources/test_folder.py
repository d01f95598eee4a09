"""Image folders: links, suffixes, what is left out, and what is read in another way than meant."""

from __future__ import annotations

import os

import numpy as np
import pytest
from conftest import refused, tiny_config
from helpers.datasets import read, save

from fastselfie.data.dataset import class_warning, open_dataset, open_part
from fastselfie.errors import UserError


def count(source):
    found = np.bincount(source.labels, minlength=len(source.classes))
    return dict(zip(source.classes, found.tolist(), strict=True))


def test_links_to_folders_are_followed(tmp_path):
    """A class folder, folders in a class, a file; a linked image has the class of the link."""
    store, root = tmp_path / "store", tmp_path / "set"
    for i in range(3):
        save(store / f"part{i}" / f"{i}.png", i)
        save(store / "whole" / f"{i}.png", i)
    save(root / "b" / "own.png")
    save(root / "c" / "own.png")
    (root / "a").symlink_to(store / "whole")
    for i in range(3):
        (root / "b" / f"part{i}").symlink_to(store / f"part{i}")
    (root / "c" / "linked.png").symlink_to(store / "whole" / "1.png")
    assert count(read(root)) == {"a": 3, "b": 4, "c": 2}


@pytest.mark.parametrize("target", [".", "..", "y", "y/back"])
def test_a_loop_of_links_ends_and_is_said(tmp_path, capsys, target):
    root = tmp_path / "set"
    save(root / "x" / "1.png")
    save(root / "y" / "2.png")
    (root / "y" / "back").symlink_to(root / target)
    assert count(read(root)) == {"x": 1, "y": 1}
    assert "1 file ignored, first: y/back" in capsys.readouterr().err


def test_two_folders_linked_to_each_other_end(tmp_path):
    root = tmp_path / "set"
    for name in "xy":
        save(root / name / "1.png")
    (root / "x" / "other").symlink_to(root / "y")
    (root / "y" / "other").symlink_to(root / "x")
    assert count(read(root)) == {"x": 2, "y": 2}


def test_a_link_to_no_image_is_named(tmp_path):
    save(tmp_path / "a" / "1.png")
    (tmp_path / "a" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(UserError, match=r"a/gone\.png"):
        read(tmp_path).image(1)


@pytest.mark.parametrize("suffix", ["gif", "jfif", "jpe", "jp2", "tga", "pnm", "dib", "TIFF"])
def test_what_pillow_reads_is_taken(tmp_path, suffix):
    save(tmp_path / "a" / f"1.{suffix}", 5)
    source = read(tmp_path)
    assert len(source) == 1
    assert source.image(0).size == (32, 32)


def test_what_is_left_out_is_counted_once(tmp_path, capsys):
    for name in ("a/1.png", "b/1.png"):
        save(tmp_path / name)
    for name in ("a/2.heic", "a/3.xyz", "a/4", "b.tar.gz"):
        (tmp_path / name).write_bytes(b"x")
    for name in (
        "a/.DS_Store",
        "a/Thumbs.db",
        "a/desktop.ini",
        "README.md",
        "labels.csv",
        "LICENSE",
    ):
        (tmp_path / name).write_bytes(b"x")
    for _ in range(2):
        assert len(read(tmp_path)) == 2
    assert capsys.readouterr().err == f"{tmp_path}: 4 files ignored, first: b.tar.gz\n"


@pytest.mark.parametrize("name", ["a/1.heic", "a/1"])
def test_a_set_of_nothing_but_what_is_left_out_names_it(tmp_path, name):
    (tmp_path / "a").mkdir()
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match=f"no images in it .*1 file ignored, first: {name}"):
        read(tmp_path)


def test_a_class_of_nothing_but_what_is_left_out_names_it(tmp_path):
    for name in ("a", "b"):
        save(tmp_path / name / "1.png")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "1.heic").write_bytes(b"x")
    with pytest.raises(UserError, match=r"c: a class without images \(1 file .* 1\.heic\)"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["c.tar", "c.parquet", "train_data_batch_1.npz", "labels.csv",
                                  "data_batch_1.bin", "train", "c.beton", "c.zip"])  # fmt: skip
def test_a_folder_of_class_folders_stays_one_whatever_lies_beside(tmp_path, name):
    for label in "ab":
        save(tmp_path / label / "1.png")
    (tmp_path / name).write_bytes(b"\x80 of another kind")
    found = open_part(tmp_path, "train")
    source, kind = found.source, found.format
    assert (kind, list(source.classes), len(source)) == ("image folder", ["a", "b"], 2)


def test_pictures_beside_parquet_of_hugging_face_are_no_set(tmp_path):
    """A repository of theirs: the files in data/, and pictures for its page."""
    for label in ("assets", "figures"):
        save(tmp_path / label / "1.png")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train-00000-of-00001.parquet").write_bytes(b"x")
    with pytest.raises(UserError, match="not a parquet file"):
        read(tmp_path)


def test_the_class_of_trains_is_no_part(tmp_path):
    for label in ("bus", "car", "train"):
        save(tmp_path / label / "1.png")
    assert list(read(tmp_path).classes) == ["bus", "car", "train"]


def test_folders_beside_those_of_the_parts_are_counted(tmp_path, capsys):
    for label in ("bus", "car", "train/freight", "train/metro", "empty"):
        (tmp_path / label).mkdir(parents=True)
        if label != "empty":
            save(tmp_path / label / "1.png")
    assert list(read(tmp_path).classes) == ["freight", "metro"]
    words = "2 folders of images beside its parts (train) ignored, first: bus"
    assert f"{tmp_path}: {words}\n" in capsys.readouterr().err


def test_one_class_is_said_loudly_and_no_labels_plainly(tmp_path, cli):
    save(tmp_path / "one" / "photos" / "a" / "1.png")
    save(tmp_path / "none" / "1.png")
    said = cli("prepare", tmp_path / "one", "--out", tmp_path / "one.beton").err
    assert "warning: " in said
    assert "all 1 images are of one class, 'photos'" in said
    said = cli("prepare", tmp_path / "none", "--out", tmp_path / "none.beton").err
    assert said == f"{tmp_path / 'none'}: 1 images without labels, for pretraining only\n"


def test_folders_that_are_no_classes_are_warned_of(tmp_path):
    for name in ("labels", "photographs"):
        save(tmp_path / name / "1.png")
    assert "warning: " in class_warning(read(tmp_path), tmp_path)
    for name in ("annotations", "images"):
        save(tmp_path / name / "1.png")
    assert "warning: " in class_warning(read(tmp_path), tmp_path)
    save(tmp_path / "other" / "cat" / "1.png")
    save(tmp_path / "other" / "dog" / "1.png")
    assert class_warning(read(tmp_path / "other"), tmp_path) == ""


@pytest.mark.parametrize("names", [
    "training_set test_set", "seg_train seg_test seg_pred", "train test1", "trainA trainB testA",
    "train.X1 train.X2 val.X", "train_images test_images val_images", "TRAIN2017 VAL2017 annotated",
])  # fmt: skip
def test_classes_that_are_named_as_parts_are_warned_of(tmp_path, names):
    for name in names.split():
        save(tmp_path / name / "1.png")
    words = "are named as parts: rename them to train and val, or pass data.train and data.test"
    assert words in class_warning(read(tmp_path), tmp_path)
    (tmp_path / "annotations").mkdir()
    with pytest.raises(UserError, match="or rename the folders of parts to train and val"):
        read(tmp_path)


@pytest.mark.parametrize("names", ["bus train", "bus car train", "contrast latest retrain"])
def test_a_class_that_sounds_like_a_part_is_not_warned_of(tmp_path, names):
    for name in names.split():
        save(tmp_path / name / "1.png")
    assert class_warning(read(tmp_path), tmp_path) == ""


@pytest.mark.parametrize("linked", [False, True])
def test_a_pipe_is_no_image(tmp_path, capsys, linked):
    save(tmp_path / "a" / "1.png")
    save(tmp_path / "b" / "1.png")
    os.mkfifo(tmp_path / "pipe" if linked else tmp_path / "a" / "pipe.jpg")
    if linked:
        (tmp_path / "pipe").rename(tmp_path / ".pipe")
        (tmp_path / "a" / "pipe.jpg").symlink_to(tmp_path / ".pipe")
    assert count(read(tmp_path)) == {"a": 1, "b": 1}
    assert capsys.readouterr().err == f"{tmp_path}: 1 file ignored, first: a/pipe.jpg\n"


def test_a_set_that_lies_deeper_is_named(tmp_path, cli):
    """ImageNet as unpacked from Kaggle: ILSVRC/Data/CLS-LOC/train."""
    inner = tmp_path / "ILSVRC" / "Data" / "CLS-LOC"
    for part in ("train", "val"):
        save(inner / part / "n01440764" / "1.png")
    (tmp_path / "LOC_val_solution.csv").write_text("x")
    result = cli("prepare", tmp_path, "--out", tmp_path / "x.beton")
    refused(result, "of one class, 'ILSVRC'", str(inner))


def test_tiny_imagenet(tmp_path):
    """Its validation images lie beside a table of their classes, its test images have none."""
    for label in ("n01", "n02", "n03"):
        for i in range(2):
            save(tmp_path / "train" / label / "images" / f"{label}_{i}.JPEG", i)
        (tmp_path / "train" / label / f"{label}_boxes.txt").write_text("x")
    for i in range(4):
        save(tmp_path / "val" / "images" / f"val_{i}.JPEG", i)
        save(tmp_path / "test" / "images" / f"test_{i}.JPEG", i)
    rows = [f"val_{i}.JPEG\t{label}\t0\t0\t9\t9\n" for i, label in enumerate(("n03", "n01") * 2)]
    (tmp_path / "val" / "val_annotations.txt").write_text("".join(rows))
    found = open_dataset(tiny_config(data={"train": str(tmp_path)}).data)
    assert count(found.train) == {"n01": 2, "n02": 2, "n03": 2}
    assert found.held_out.labels.tolist() == [2, 0, 2, 0]
    assert os.path.basename(found.held_out.name(0)) == "val_0.JPEG"
    (tmp_path / "val" / "val_annotations.txt").write_bytes(b"\xff\xfe" + rows[0].encode())
    with pytest.raises(UserError, match=r"val_annotations\.txt: has no class for val_"):
        read(tmp_path / "val", "test")
    (tmp_path / "val" / "val_annotations.txt").write_text(rows[0])
    with pytest.raises(UserError, match=r"val_annotations\.txt: has no class for val_1\.JPEG"):
        read(tmp_path / "val", "test")


def test_tiny_imagenets_images_sorted_into_folders(tmp_path):
    """The table of their classes and the empty folder that they came from are left."""
    for label in ("n01", "n02"):
        save(tmp_path / label / "1.JPEG")
    (tmp_path / "images").mkdir()
    (tmp_path / "val_annotations.txt").write_text("1.JPEG\tn01\n")
    for part in ("train", "test"):
        assert count(read(tmp_path, part)) == {"n01": 1, "n02": 1}
