"""Which part of a dataset is held out, and what its labels mean."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import write_idx
from helpers.datasets import dataset, names, tree, write_parquet, write_shard

from fastselfie.data.beton.reader import BetonReader
from fastselfie.data.dataset import open_part
from fastselfie.errors import UserError


@pytest.mark.parametrize("others", [("test",), ("test", "valid"), ()])
def test_kaggles_imagenet_holds_out_the_labelled_part(tmp_path, cli, others):
    tree(tmp_path, "train", ["n0", "n1"])
    tree(tmp_path, "val", ["n0", "n1"], 3)
    for part in others:
        tree(tmp_path, part, [])
    found = dataset(tmp_path)
    assert names(found.held_out) == ["n0"] * 3 + ["n1"] * 3
    assert found.split.startswith(f"the val part of {tmp_path}")
    assert ("(no labels of the training classes in: test" in found.split) == ("test" in others)
    out = tmp_path / "out.beton"
    assert cli("prepare", tmp_path, "--out", out, "--part", "test").status == 0
    assert BetonReader(out).label.tolist() == found.held_out.labels.tolist()


def test_of_two_labelled_parts_test_is_held_out(tmp_path):
    for part, count in (("train", 2), ("val", 1), ("test", 3)):
        tree(tmp_path, part, ["a", "b"], count)
    assert len(dataset(tmp_path).held_out) == 6


def test_the_labelled_part_is_chosen_without_a_training_part_too(tmp_path):
    tree(tmp_path, "test", [])
    tree(tmp_path, "val", ["a", "b"])
    assert list(open_part(tmp_path, "held_out").source.classes) == ["a", "b"]
    with pytest.raises(UserError, match="holds no training images"):
        dataset(tmp_path)


def test_a_part_of_other_classes_is_passed_over(tmp_path):
    tree(tmp_path, "train", ["a", "b"])
    tree(tmp_path, "test", ["unknown"])
    tree(tmp_path, "valid", ["a", "b"], 1)
    assert names(dataset(tmp_path).held_out) == ["a", "b"]


def test_a_share_is_held_out_where_only_the_test_part_has_no_labels(tmp_path):
    tree(tmp_path, "train", ["a", "b"], 10)
    tree(tmp_path, "test", [])
    found = dataset(tmp_path, held_out=0.2)
    assert (len(found.train), len(found.held_out)) == (16, 4)
    assert found.split == f"20% of {tmp_path}: its test part has no labels"
    assert len(open_part(tmp_path, "held_out").source) == 2  # for `features`


@pytest.mark.parametrize("name", ["unknown", "test", "images"])
def test_one_folder_of_images_without_labels_is_no_class(tmp_path, name):
    tree(tmp_path, "train", ["a", "b"], 10)
    tree(tmp_path, "test", [name])
    assert dataset(tmp_path).split == f"10% of {tmp_path}: its test part has no labels"


def test_unlabelled_training_images_hold_out_their_unlabelled_test_part(tmp_path):
    tree(tmp_path, "train", [], 3)
    tree(tmp_path, "test", [], 1)
    tree(tmp_path, "val", ["a", "b"])
    found = dataset(tmp_path)
    assert (len(found.train), len(found.held_out)) == (3, 1)


def test_the_labels_of_held_out_images_are_dropped_where_training_has_none(tmp_path):
    tree(tmp_path, "train", [], 3)
    tree(tmp_path, "val", ["a", "b"])
    found = dataset(tmp_path)
    assert found.comparable
    assert found.held_out.labels.tolist() == [0] * 4


@pytest.mark.parametrize(
    ("train", "test"),
    [("training", "testing"), ("Train", "Val"), ("train", "dev"), ("Training", "Evaluation")],
)
def test_other_names_of_parts(tmp_path, train, test):
    tree(tmp_path, train, ["a", "b"], 3)
    tree(tmp_path, test, ["a", "b"], 1)
    found = dataset(tmp_path)
    assert (len(found.train), len(found.held_out)) == (6, 2)


def test_an_empty_part_is_none(tmp_path):
    tree(tmp_path, "train", ["a", "b"])
    tree(tmp_path, "val", ["a", "b"])
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / ".gitkeep").touch()
    assert len(dataset(tmp_path).held_out) == 4


def test_shards_hold_out_the_labelled_part(tmp_path):
    write_shard(tmp_path / "in-train-0.tar", [0, 1, 2, 0])
    write_shard(tmp_path / "in-test-0.tar", [None] * 4)
    write_shard(tmp_path / "in-val-0.tar", [0, 1, 0])
    assert len(dataset(tmp_path).held_out) == 3
    assert len(open_part(tmp_path, "held_out").source) == 3


def test_parquet_holds_out_the_labelled_part(tmp_path):
    labels = ["cat", "dog", "owl"]
    write_parquet(tmp_path / "train-0.parquet", [0, 1, 2, 0], labels)
    write_parquet(tmp_path / "test-0.parquet", [0] * 4, [])
    write_parquet(tmp_path / "validation-0.parquet", [0, 1, 2], labels)
    assert names(dataset(tmp_path).held_out) == labels
    assert len(open_part(tmp_path, "held_out").source) == 3


# --- what the labels mean


@pytest.mark.parametrize("empty", [True, False])
def test_a_class_without_held_out_images(tmp_path, cli, empty):
    """By name, never shifted; prepared too."""
    tree(tmp_path, "train", "abcd")
    tree(tmp_path, "val", "abd")
    if empty:
        (tmp_path / "val" / "c").mkdir()
    found = dataset(tmp_path)
    assert list(found.held_out.classes) == list("abcd")
    assert found.held_out.labels.tolist() == [0, 0, 1, 1, 3, 3]
    paths = {part: tmp_path / f"{part}.beton" for part in ("train", "test")}
    for part, path in paths.items():
        assert cli("prepare", tmp_path, "--out", path, "--part", part).status == 0
    assert BetonReader(paths["test"]).label.tolist() == [0, 0, 1, 1, 3, 3]
    again = dataset(paths["train"], test=str(paths["test"]))
    assert again.fingerprint() == found.fingerprint()


def test_numbers_as_names_are_names(tmp_path):
    """Sorted as text 10 comes before 2."""
    tree(tmp_path, "train", [str(i) for i in range(12)], 1)
    tree(tmp_path, "val", ["0", "1", "2"], 1)
    held_out = dataset(tmp_path).held_out
    assert names(held_out) == ["0", "1", "2"]
    assert held_out.labels.tolist() == [0, 1, 4]


def test_idx_without_the_last_class(idx_folder):
    write_idx(idx_folder / "t10k-labels-idx1-ubyte", (np.arange(20) % 3).astype(np.uint8))
    found = dataset(idx_folder)
    assert list(found.held_out.classes) == ["0", "1", "2", "3"]


def test_other_classes_are_refused_with_both_lists(tmp_path):
    tree(tmp_path, "train", ["cat", "dog"])
    tree(tmp_path / "other", "val", ["cat", "cow"])
    words = r"its classes cat, cow are not those of the training images, cat, dog, which lack cow"
    with pytest.raises(UserError, match=words):
        dataset(tmp_path, test=str(tmp_path / "other" / "val"))
    found = dataset(tmp_path, labels_needed=False, test=str(tmp_path / "other" / "val"))
    assert not found.comparable
    assert list(found.held_out.classes) == ["cat", "cow"]


def test_the_same_classes_in_another_order_are_refused_with_both_lists(tmp_path):
    write_parquet(tmp_path / "train.parquet", [0, 1, 2], ["a", "b", "c"])
    write_parquet(tmp_path / "test.parquet", [0, 1, 2], ["c", "b", "a"])
    words = "its classes c, b, a come in another order than those of the training images, a, b, c"
    with pytest.raises(UserError, match=words):
        dataset(tmp_path)
    write_parquet(tmp_path / "validation.parquet", [0, 1], ["a", "c"])
    assert names(dataset(tmp_path).held_out) == ["a", "c"]


def test_held_out_images_without_labels_are_for_pretraining(tmp_path):
    tree(tmp_path, "train", ["cat", "dog"])
    tree(tmp_path, "loose", [])
    with pytest.raises(UserError, match="its images have no labels, which the evaluation needs"):
        dataset(tmp_path, test=str(tmp_path / "loose"))
    assert len(dataset(tmp_path, labels_needed=False, test=str(tmp_path / "loose")).held_out) == 2


# --- in a run


def test_pretraining_takes_held_out_images_of_other_classes(tmp_path, cli, tiny_yaml):
    tree(tmp_path / "set", "train", ["a", "b"], 8)
    tree(tmp_path / "other", "test", ["x", "y", "z"], 4)
    command = ["train", tiny_yaml, f"data.train={tmp_path / 'set' / 'train'}",
               f"data.test={tmp_path / 'other' / 'test'}", "--out", tmp_path / "run"]  # fmt: skip
    assert "lack x, y, z" in cli(*command).err
    assert not (tmp_path / "run").exists()
    planned = cli(*command, "--stage", "pretrain", "--dry-run")
    assert planned.status == 0
    assert "missing data" not in planned.out
    result = cli(*command, "--stage", "pretrain", "pretrain.knn_every=2")
    assert result.status == 0
    assert "no k-NN or linear probe: the held-out images have no labels" in result.err
    figures = json.loads(result.out)
    assert "pretext_accuracy" in figures
    assert "knn" not in figures
    assert "lack x, y, z" in cli("evaluate", tmp_path / "run").err
