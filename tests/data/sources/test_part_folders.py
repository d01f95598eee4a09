"""Folders of parts: beside folders of classes, inside them, and what is beside both."""

from __future__ import annotations

import pytest
from helpers.datasets import dataset, names, save, tree

from fastselfie.data.dataset import class_warning
from fastselfie.errors import UserError


@pytest.mark.parametrize("part", ["val", "test", "dev", "Validation"])
def test_a_part_beside_the_classes_is_no_class(tmp_path, capsys, part):
    tree(tmp_path, "", ["a", "b"], 3)
    tree(tmp_path, part, ["a", "b"], 1)
    found = dataset(tmp_path)
    assert list(found.train.classes) == ["a", "b"]
    assert (len(found.train), names(found.held_out)) == (6, ["a", "b"])
    assert found.split == f"the {part.lower()} part of {tmp_path}"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("inner", [[], ["unknown"]])
def test_a_part_without_labels_beside_the_classes_is_no_class_and_is_said(tmp_path, capsys, inner):
    tree(tmp_path, "", ["a", "b"], 10)
    tree(tmp_path, "test", inner)
    found = dataset(tmp_path)
    assert list(found.train.classes) == ["a", "b"]
    assert (len(found.train), len(found.held_out)) == (18, 2)
    words = (
        f"{tmp_path}: test is taken for a held-out part without labels, because it has no folders"
    )
    assert capsys.readouterr().err.startswith(words)


def test_a_class_called_test_stays_one(tmp_path):
    tree(tmp_path, "", ["oral", "test/blood", "test/urine"], 10)
    found = dataset(tmp_path)
    assert list(found.train.classes) == ["oral", "test"]
    assert (len(found.train), len(found.held_out)) == (27, 3)


def test_a_class_called_test_in_the_training_part_stays_one(tmp_path, capsys):
    for part in ("train", "val"):
        tree(tmp_path, part, ["oral", "test"], 2)
    found = dataset(tmp_path)
    assert names(found.train) == names(found.held_out) == ["oral"] * 2 + ["test"] * 2
    assert capsys.readouterr().err == ""


def test_a_link_to_no_part_is_said(tmp_path, capsys):
    tree(tmp_path, "train", ["a", "b"], 10)
    (tmp_path / "val").symlink_to(tmp_path / "gone")
    assert dataset(tmp_path).split == f"10% of {tmp_path}"
    words = f"{tmp_path / 'val'}: a broken link, so the dataset has no such part: fix the link\n"
    assert capsys.readouterr().err == words


def test_files_beside_the_parts_are_counted(tmp_path, capsys):
    tree(tmp_path, "train", ["a", "b"])
    for name in ("sample.png", "README.md", "labels.csv"):
        save(tmp_path / "x.png")
        (tmp_path / "x.png").rename(tmp_path / name)
    dataset(tmp_path, held_out=0.5)
    assert capsys.readouterr().err == f"{tmp_path}: 1 file ignored, first: sample.png\n"


def test_a_part_inside_a_folder_of_its_name_is_explained(tmp_path):
    for part in ("train", "val"):
        tree(tmp_path, f"{part}/{part}", ["a", "b"])
    with pytest.raises(UserError, match=r"\(train, val\): pass the inner folders as data\.train"):
        dataset(tmp_path)


def test_loose_images_beside_a_held_out_part_are_training_images(tmp_path):
    tree(tmp_path, "", [], 5)
    tree(tmp_path, "test", [], 2)
    found = dataset(tmp_path)
    assert (len(found.train), len(found.held_out)) == (5, 2)
    assert class_warning(found.train, tmp_path) == (
        f"{tmp_path}: 5 images without labels, for pretraining only"
    )


@pytest.mark.parametrize("part", ["val", "Test"])
def test_a_held_out_part_inside_the_training_part_is_refused(tmp_path, part):
    tree(tmp_path, "train", ["a", "b", f"{part}/a", f"{part}/b"])
    words = rf"train/{part}: holds folders of the same names as the classes beside it \(a\)"
    with pytest.raises(UserError, match=words):
        dataset(tmp_path)
    found = dataset(tmp_path / "train")
    assert (names(found.train), names(found.held_out)) == (["a"] * 2 + ["b"] * 2,) * 2
