"""Which format a dataset has when files of several formats are in one folder."""

from __future__ import annotations

import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.datasets import dataset, names, tree, write_parquet, write_shard

from fastselfie.data.dataset import open_part
from fastselfie.errors import UserError


@pytest.mark.parametrize("kind", ["tar", "parquet"])
@pytest.mark.parametrize("place", ["", "train"])
def test_shards_in_folders_beside_shards_are_counted(tmp_path, capsys, kind, place):
    for name in ("0", "more/1", "more/deeper/2"):
        path = tmp_path / place / f"{name}.{kind}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "tar":
            write_shard(path, [0, 1])
        else:
            write_parquet(path, [0, 1], ["a", "b"])
    assert len(open_part(tmp_path, "train").source) == 2
    words = f"{tmp_path / place}: 2 files ignored, first: more/1.{kind}\n"
    assert capsys.readouterr().err == words


def test_loose_images_beside_fewer_shards_are_refused(tmp_path):
    write_shard(tmp_path / "backup.tar", [0, 1])
    tree(tmp_path, "", [], 3)
    words = (
        r"either its 3 images \(0\.png\) or its 1 \.tar files \(backup\.tar\) may be the dataset"
    )
    with pytest.raises(UserError, match=words):
        open_part(tmp_path, "train")


@pytest.mark.parametrize("place", ["", "a"])
def test_images_beside_shards_are_counted(tmp_path, capsys, place):
    write_shard(tmp_path / "0.tar", [0, 1])
    tree(tmp_path, place, [], 3 if place else 1)
    assert len(open_part(tmp_path, "train").source) == 2
    words = "3 files ignored, first: a/0.png" if place else "1 file ignored, first: 0.png"
    assert capsys.readouterr().err == f"{tmp_path}: {words}\n"


@pytest.mark.parametrize("place", ["", "a"])
def test_a_table_of_what_is_known_of_images_is_no_set(tmp_path, capsys, place):
    pq.write_table(pa.table({"file_name": ["0.png"]}), tmp_path / "metadata.parquet")
    tree(tmp_path, place, [], 3)
    assert len(open_part(tmp_path, "train").source) == 3
    words = f"{tmp_path}: 1 file ignored, first: metadata.parquet\n"
    assert capsys.readouterr().err == words


def test_archives_beside_the_parts_are_left_alone(tmp_path, cli):
    """The root of torchvision.datasets.ImageNet."""
    for part in ("train", "val"):
        tree(tmp_path, part, ["n01440764", "n01443537"])
        (tmp_path / f"ILSVRC2012_img_{part}.tar").write_bytes(bytes(10240))
    assert names(dataset(tmp_path).train) == ["n01440764"] * 2 + ["n01443537"] * 2


@pytest.mark.parametrize("name", ["n01440764.tar", "ILSVRC2012_img_train.tar"])
def test_imagenets_own_archives_are_no_shards(tmp_path, name):
    write_shard(tmp_path / name, [None] * 3)
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(UserError, match=f"{name} is one of ImageNet's archives"):
            open_part(path, "train")


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_pipe_among_the_shards_is_refused(tmp_path, kind):
    """To open it would block for ever."""
    if kind == "tar":
        write_shard(tmp_path / "a.tar", [0, 1])
    else:
        write_parquet(tmp_path / "a.parquet", [0, 1], ["a", "b"])
    os.mkfifo(tmp_path / f"x.{kind}")
    with pytest.raises(UserError, match=rf"/x\.{kind}: not a regular file .*: move it away$"):
        open_part(tmp_path, "train")


@pytest.mark.parametrize("name", ["x.beton", "x.BETON"])
@pytest.mark.parametrize("images", [True, False])
def test_a_folder_named_as_a_beton_file_is_refused(tmp_path, capsys, name, images):
    (tmp_path / name).mkdir()
    if images:
        tree(tmp_path, name, ["a", "b"])
    with pytest.raises(UserError, match=rf"/{name}: is a folder, but .*: rename the folder$"):
        open_part(tmp_path / name, "train")
    assert capsys.readouterr().err == ""
