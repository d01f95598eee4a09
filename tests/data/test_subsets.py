"""Label subsets: balanced, fixed, nested."""

from __future__ import annotations

import numpy as np
import pytest

from fastselfie.data.subsets import balanced_subset, label_subset
from fastselfie.errors import UserError

LABELS = np.arange(1000) % 10


def test_a_share_is_balanced_fixed_and_kept_in_a_file(tmp_path):
    path = tmp_path / "labels.txt"
    indices = label_subset(LABELS, 0.05, None, 0, path)
    assert np.bincount(LABELS[indices]).tolist() == [5] * 10
    assert path.read_text().splitlines()[0] == "# 50 of 1000 images, 10 classes, seed 0"
    assert np.array_equal(label_subset(LABELS, 0.05, None, 0, path), indices)
    assert not np.array_equal(balanced_subset(LABELS, 5, 1), indices)


def test_the_papers_sizes():
    cifar = np.arange(50_000) % 10
    assert len(balanced_subset(cifar, 250, 0)) == 2_500
    assert len(balanced_subset(cifar, 400, 0)) == 4_000


@pytest.mark.parametrize(("share", "each"), [(0.05, 250), (0.08, 400), (0.2, 1000)])
def test_shares_of_cifar(tmp_path, share, each):
    cifar = np.arange(50_000) % 10
    assert len(label_subset(cifar, share, None, 0, tmp_path / "l.txt")) == 10 * each


def test_subsets_are_nested():
    assert set(balanced_subset(LABELS, 5, 0)) < set(balanced_subset(LABELS, 8, 0))


def test_all_labels_are_all_images(tmp_path):
    uneven = np.array([0, 0, 0, 1])
    assert label_subset(uneven, 1.0, None, 0, tmp_path / "l.txt").tolist() == [0, 1, 2, 3]


def test_a_small_share_is_one_a_class_and_an_uneven_set_is_capped(tmp_path):
    assert len(label_subset(LABELS, 0.001, None, 0, tmp_path / "a.txt")) == 10
    uneven = np.array([0] * 90 + [1] * 10)
    assert len(label_subset(uneven, 0.5, None, 0, tmp_path / "b.txt")) == 20


def test_too_many_a_class_is_refused(tmp_path):
    with pytest.raises(UserError, match="class 0 has 100 images, fewer than the 101"):
        label_subset(LABELS, 0.1, 101, 0, tmp_path / "l.txt")


def test_a_file_of_other_labels_is_refused(tmp_path):
    path = tmp_path / "labels.txt"
    label_subset(LABELS, 0.05, None, 0, path)
    with pytest.raises(UserError, match=r"labels\.txt: is a subset of other images"):
        label_subset(LABELS[:500], 0.05, None, 0, path)
