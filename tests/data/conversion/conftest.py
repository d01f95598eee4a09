"""Datasets on a server, for the tests of `prepare` from URLs."""

from __future__ import annotations

import pytest
from conftest import jpeg_bytes, textured
from helpers.datasets import write_parquet, write_tar
from support.file_server import serving

from fastselfie.data.conversion.prepare import Options, prepare

SHARDS, IMAGES = 3, 100  # files, and images in each


@pytest.fixture(scope="session")
def originals(tmp_path_factory):
    """DIR/{shards,tables}: 300 images in 3 tar files, 40 in a parquet file; and what they make."""
    root = tmp_path_factory.mktemp("remote")
    for name in ("shards", "tables/data"):
        (root / "www" / name).mkdir(parents=True)
    for shard in range(SHARDS):
        members = []
        for i in range(IMAGES):
            number = shard * IMAGES + i
            members.append((f"{number:04}.jpg", jpeg_bytes(textured(number, 90 + i % 7, 80))))
            members.append((f"{number:04}.cls", str(number % 5).encode()))
        write_tar(root / "www" / "shards" / f"photos-train-{shard:04}.tar", members)
    data = root / "www" / "tables" / "data"
    write_parquet(data / "train-00000-of-00001.parquet", [i % 3 for i in range(40)], list("abc"))
    write_parquet(data / "validation-00000-of-00001.parquet", [2, 1, 0, 1], list("abc"))
    for name in ("shards", "tables"):
        prepare(root / "www" / name, root / f"{name}.beton", Options(workers=1))
    return root


@pytest.fixture
def server(originals):
    with serving(originals / "www") as found:
        yield found


@pytest.fixture
def own_server(originals, tmp_path):
    """Of files that a test may change."""
    folder = tmp_path / "www" / "shards"
    folder.mkdir(parents=True)
    for path in (originals / "www" / "shards").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    with serving(tmp_path / "www") as found:
        yield found
