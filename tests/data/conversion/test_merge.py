"""`prepare --shard` and `join`: parts of a set, and the bytes of one file from them."""

from __future__ import annotations

import json
import os

import pytest
from conftest import picture

from fastselfie.data.beton.reader import BetonReader

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path):
    """40 images of three classes, DIR/{a,b,c}/NN.jpg."""
    root = tmp_path / "photos"
    for i in range(40):
        path = root / "abc"[i % 3] / f"{i:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(i, 80 + i % 17, 80 - i % 11).save(path, quality=90, progressive=i % 2 == 1)
    return root


@pytest.fixture
def parts(folder, tmp_path, cli):
    """Three parts of a folder in which one image is unreadable."""
    (folder / "b" / "13.jpg").write_bytes(b"no image")
    files = []
    for k in (1, 2, 3):
        files.append(tmp_path / f"part-{k}.beton")
        options = ("--shard", f"{k}/3", "--on-error", "skip", "--workers", "1")
        assert cli("prepare", folder, "--out", files[-1], *options).status == 0
    return files


def test_joined_parts_are_the_bytes_of_one_file(folder, tmp_path, parts, cli):
    whole, joined = tmp_path / "whole.beton", tmp_path / "joined.beton"
    assert cli("prepare", folder, "--out", whole, "--on-error", "skip").status == 0
    result = cli("join", parts[2], parts[0], parts[1], "--out", joined)
    assert result.status == 0, result.err
    assert json.loads(result.out.splitlines()[-1])["images"] == 39
    assert joined.read_bytes() == whole.read_bytes()
    lists = [p.with_suffix(".skipped.txt").read_text(encoding="utf-8") for p in (whole, joined)]
    assert lists[0] == lists[1]
    assert [len(BetonReader(p)) for p in parts] == [13, 12, 14]


def test_shards_that_do_not_belong_together_are_refused(folder, tmp_path, parts, cli):
    out = tmp_path / "joined.beton"
    other = tmp_path / "other.beton"
    options = ("--shard", "2/3", "--quality", "50", "--on-error", "skip")
    assert cli("prepare", folder, "--out", other, *options).status == 0
    whole = tmp_path / "whole.beton"
    assert cli("prepare", folder, "--out", whole, "--on-error", "skip").status == 0
    for files, named in (
        (parts[:2], "shard 3 of 3 is missing"),
        ([*parts, parts[0]], "is shard 1, as is"),
        ([parts[0], other, parts[2]], "another options than"),
        ([whole], "is not a shard"),
        ([tmp_path / "no.beton"], "no.beton"),
    ):
        result = cli("join", *files, "--out", out)
        assert result.status == 2
        assert named in result.err.replace("\n", " ")
        assert len(result.err.splitlines()) == 1
        assert not out.exists()
    for text, named in (("3", "pass K/N"), ("4/3", "K from 1 to N"), ("1/99", "only 40 images")):
        result = cli("prepare", folder, "--out", out, "--shard", text)
        assert (result.status, named in result.err) == (2, True)


def test_a_damaged_shard_is_not_merged(tmp_path, parts, cli):
    reader = BetonReader(parts[1])
    with open(parts[1], "r+b") as file:
        file.seek(int(reader.offset[3]) + 40)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    result = cli("join", *parts, "--out", tmp_path / "joined.beton")
    assert result.status == 2
    assert "part-2.beton: sample 3 is damaged" in result.err.replace("\n", " ")
    assert not (tmp_path / "joined.beton").exists()
