"""The ~ in a path, of a user that there is and of one that there is not."""

from __future__ import annotations

import pytest
from conftest import picture

from fastselfie.config import DataConfig
from fastselfie.data.dataset import open_dataset
from fastselfie.errors import UserError


def test_the_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("a", "b"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for seed in range(2):
            picture(seed, 8, 8).save(tmp_path / "set" / name / f"{seed}.png")
    assert len(open_dataset(DataConfig(train="~/set", held_out=0.5)).train) == 2


@pytest.mark.parametrize("key", ["train", "test"])
def test_the_home_of_nobody_is_one_line(tmp_path, key):
    """pathlib raises RuntimeError for it."""
    (tmp_path / "a").mkdir()
    picture(0, 8, 8).save(tmp_path / "a" / "0.png")
    paths = {"train": str(tmp_path), "test": str(tmp_path), key: "~no-such-user/x"}
    with pytest.raises(UserError, match=r"~no-such-user/x: no such file or folder"):
        open_dataset(DataConfig(**paths))
