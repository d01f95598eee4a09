"""Label subsets: balanced, fixed, nested."""

from __future__ import annotations

import numpy as np
import pytest

from fastselfie.data.splits import choose_labels, keep_labels
from fastselfie.errors import UserError

LABELS = np.arange(1000) % 10
CIFAR = np.arange(50_000) % 10


def test_a_choice_is_kept_in_a_file_and_checked(tmp_path):
    path = tmp_path / "labels.txt"
    indices = choose_labels(LABELS, 0.05, None, 0)
    assert np.bincount(LABELS[indices]).tolist() == [5] * 10
    keep_labels(path, indices, LABELS, 0)
    lines = path.read_text().splitlines()
    assert lines[0] == "# 50 of 1000 images, 10 classes, seed 0"
    assert [int(line) for line in lines[1:]] == indices.tolist()
    keep_labels(path, indices, LABELS, 0)
    with pytest.raises(UserError, match=r"labels\.txt: was written for other images"):
        keep_labels(path, indices[1:], LABELS, 0)


def test_the_choice_is_fixed_by_the_seed():
    first = choose_labels(LABELS, 0.05, None, 0)
    assert np.array_equal(first, choose_labels(LABELS, 0.05, None, 0))
    assert not np.array_equal(first, choose_labels(LABELS, 0.05, None, 1))


@pytest.mark.parametrize(("share", "each"), [(0.05, 250), (0.08, 400), (0.2, 1000)])
def test_the_papers_shares_of_cifar(share, each):
    indices = choose_labels(CIFAR, share, None, 0)
    assert np.bincount(CIFAR[indices]).tolist() == [each] * 10
    assert np.array_equal(indices, choose_labels(CIFAR, 0.5, each, 0))


def test_choices_are_nested():
    assert set(choose_labels(LABELS, 1, 5, 0)) < set(choose_labels(LABELS, 1, 8, 0))


def test_all_labels_are_all_images():
    assert choose_labels(np.array([0, 0, 0, 1]), 1.0, None, 0).tolist() == [0, 1, 2, 3]


def test_a_small_share_is_one_a_class_and_a_small_class_gives_all_it_has():
    assert len(choose_labels(LABELS, 0.001, None, 0)) == 10
    uneven = np.array([0] * 500 + [1] * 497 + [2] * 3)
    chosen = choose_labels(uneven, 0.05, None, 0)
    assert np.bincount(uneven[chosen]).tolist() == [16, 16, 3]


def test_too_many_a_class_is_refused():
    with pytest.raises(UserError, match="class 0 has 100 images, fewer than the 101"):
        choose_labels(LABELS, 0.1, 101, 0)
