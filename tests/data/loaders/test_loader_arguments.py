"""The arguments of the public Loader: the dataset, and what is refused."""

from __future__ import annotations

import shutil

import pytest
import torch
from conftest import picture
from helpers.loaders import epoch_of

from fastselfie import Loader, UserError, View, open_dataset

MEAN = (0.4, 0.5, 0.6)


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"batch_size": 0}, ValueError, "batch_size is 0"),
        ({"batch_size": 2.5}, TypeError, "batch_size is 2.5"),
        ({"size": 0}, ValueError, "size is 0"),
        ({"crop": "centre"}, ValueError, "crop is 'centre'.*random_resized, center"),
        ({"area": (0.5, 0.1)}, ValueError, "area is"),
        ({"ratio": (0, 1)}, ValueError, "ratio is"),
        ({"crop": "pad", "pad": 99}, ValueError, "pad is 99"),
        ({"pad_mode": "wrap"}, ValueError, "pad_mode is 'wrap'"),
        ({"views": []}, ValueError, "views is empty"),
        ({"views": [32]}, TypeError, "views holds 32"),
        ({"views": [View(16)], "size": 16}, ValueError, "views is given"),
        ({"dtype": torch.int32}, ValueError, "dtype is torch.int32"),
        ({"mean": MEAN}, ValueError, "need a dtype of floats"),
        ({"dtype": torch.float32, "mean": (1, 2)}, ValueError, "mean is"),
        ({"seed": -1}, ValueError, "seed is -1"),
        ({"seed": 2**32}, ValueError, "seed is 4294967296"),
        ({"size": True}, TypeError, "size is True"),
        ({"crop": "pad", "pad": 1.5}, TypeError, "pad is 1.5"),
        ({"area": 0.5}, TypeError, "area is 0.5"),
        ({"ratio": (1.0,)}, ValueError, "ratio is"),
        ({"views": View(32)}, TypeError, "views is View"),
        ({"dtype": torch.float32, "mean": 0.5}, TypeError, "mean is 0.5"),
        ({"dtype": torch.float32, "std": (0, 1, 1)}, ValueError, "std is"),
        ({"device": "mps"}, ValueError, "device is mps"),
        ({"device": "cuda:99"}, ValueError, "device is cuda:99"),
        ({"workers": 5000}, ValueError, "workers is 5000"),
        ({"max_skipped_in_a_row": 0}, ValueError, "max_skipped_in_a_row is 0"),
        ({"batch_size": 99, "drop_last": True}, ValueError, "drop_last leaves no batch"),
        ({"part": "Val"}, ValueError, "part is 'Val'"),
        ({"workers": -1}, ValueError, "workers is -1"),
        ({"rank": 0}, ValueError, "rank and world_size"),
        ({"rank": 2, "world_size": 2}, ValueError, "rank is 2"),
        ({"on_error": "ignore"}, ValueError, "on_error is 'ignore'"),
        ({"backend": "turbo"}, ValueError, "backend is 'turbo'"),
    ],
)
def test_a_wrong_argument_is_named(numbered, options, error, named):
    with pytest.raises(error, match=named):
        Loader(numbered, **{"batch_size": 4, "size": 32, **options})


def test_data_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        Loader(tmp_path / "nowhere", 4)
    with pytest.raises(TypeError, match="data is a int: it must be a path"):
        Loader(7, 4)
    with pytest.raises(ValueError, match="data is empty"):
        Loader("", 4)


def test_backends_of_one_view_refuse_several(numbered):
    with pytest.raises(ValueError, match="use native or folder for 2 views"):
        Loader(numbered, 8, views=[View(16, crop="pad", count=2)], backend="resident")


def test_each_part_is_the_one_of_that_name(tmp_path):
    """Not the held-out part that training would choose."""
    for part, count in (("train", 6), ("valid", 4), ("test", 2)):
        for label in ("a", "b"):
            folder = tmp_path / part / label
            folder.mkdir(parents=True)
            for number in range(count):
                picture(number, 20, 20).save(folder / f"{number}.png")
    sizes = {
        part: len(Loader(tmp_path, 1, size=16, part=part)) for part in ("train", "val", "test")
    }
    assert sizes == {"train": 12, "val": 8, "test": 4}
    shutil.rmtree(tmp_path / "valid")
    with pytest.raises(UserError, match="holds no val images"):
        Loader(tmp_path, 1, part="val")
    assert len(Loader(tmp_path / "test", 1, part="val")) == 4  # it has no parts


def test_a_source_of_open_dataset_is_taken(image_folder):
    dataset = open_dataset(image_folder)
    loader = Loader(dataset.held_out, 4, size=32, crop="center", shuffle=False, workers=0)
    assert loader.classes == ["cat", "dog"]
    assert sum(len(labels) for _, labels in epoch_of(loader)) == len(dataset.held_out)
