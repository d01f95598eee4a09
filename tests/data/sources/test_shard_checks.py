"""What sets in many files share: shards that are not there or not read, and labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fastselfie.data.sources.base import UNLABELLED
from fastselfie.data.sources.shard_checks import labels_and_classes, require_whole, unread_shards
from fastselfie.errors import UserError


@pytest.mark.parametrize(
    ("suffix", "unread"),
    [
        (".tar", ["b.tar.gz", "c.TAR", "d.tar.part", "e.tgz", "f.tbz2", "g.tar.zst", "h.tar.xz"]),
        (".parquet", ["b.parquet.gz", "c.Parquet", "d.parquet.crdownload", "e.parquet.zst"]),
    ],
)
def test_unread_shards_are_listed_in_order(tmp_path, suffix, unread):
    others = (f"a{suffix}", f"a{suffix}.md5", f"a{suffix}.json", f".b{suffix}.gz", "a.zip", "a.gz")
    for name in (*reversed(unread), *others):
        (tmp_path / name).touch()
    assert [line.partition(": ")[0] for line in unread_shards(tmp_path, suffix)] == [
        f"{tmp_path}/{name}" for name in unread
    ]


@pytest.mark.parametrize(
    ("name", "count"), [("a.tar", 0), ("a.TAR", 0), ("a.tar.gz", 1), ("a.tgz", 1), ("a.jpg", 0)]
)
def test_a_file_of_its_own(tmp_path, name, count):
    """Of a file that is named as the set, the suffix may be in capitals."""
    assert len(unread_shards(tmp_path / name, ".tar")) == count


def test_the_first_unread_shard_is_named_and_the_others_counted(tmp_path):
    for name in ("b.tar.gz", "c.tar.gz", "d.TAR"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"b\.tar\.gz: is compressed: .* \(2 more like it\)$"):
        require_whole(tmp_path, [], ".tar")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"], ""),
        (["train-00000-of-00002-5d61.parquet", "train-00001-of-00002-99ae.parquet"], ""),
        (["train-00001-of-00014.parquet"], "13 of the 14 files train-* are missing"),
        (["a-1-of-2.tar", "b-0-of-1.tar"], "1 of the 2 files a-* are missing"),
        (["train-0.tar", "train-7.tar"], ""),
    ],
)
def test_missing_shards_are_counted(tmp_path, capsys, names, said):
    require_whole(tmp_path, [Path(name) for name in names], Path(names[0]).suffix)
    assert capsys.readouterr().err == (f"{tmp_path}: {said}\n" if said else "")


def checked(labels, names=(), part="train"):
    numbers = np.asarray(labels, dtype=np.int64)
    return labels_and_classes(numbers, names, Path("set"), part, "image {}".format)


@pytest.mark.parametrize("part", ["train", "test"])
def test_classes_are_the_names_or_the_numbers(part):
    assert checked([0, 2], ["a", "b", "c", "d"], part)[1] == ["a", "b", "c", "d"]
    labels, classes = checked([0, 2], (), part)
    assert (labels.tolist(), classes) == ([0, 2], ["0", "1", "2"])


@pytest.mark.parametrize("part", ["test", "val", "validation"])
def test_a_held_out_part_may_have_no_labels(part):
    labels, classes = checked([-1, -1], ["a", "b"], part)
    assert (labels.tolist(), classes) == ([0, 0], UNLABELLED)


@pytest.mark.parametrize(
    ("labels", "part", "words"),
    [
        ([-1, -1], "train", "set: all its labels are missing"),
        ([0, -1, -1], "test", "image 1: its label is missing .*first of 2 among 3"),
        ([0, 3, 2], "train", "image 1: its label is 3, but only 3 classes are named"),
    ],
)
def test_labels_that_mean_nothing_are_named(labels, part, words):
    with pytest.raises(UserError, match=words):
        checked(labels, ["a", "b", "c"], part)


def test_the_list_of_classes_has_a_limit():
    assert len(checked([(1 << 16) - 1])[1]) == 1 << 16
    with pytest.raises(UserError, match="image 1: its label 16777216 is too large"):
        checked([0, 1 << 24])
