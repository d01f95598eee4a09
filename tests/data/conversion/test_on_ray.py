"""`fastselfie prepare --engine ray`: the same bytes though nodes die; what a node lacks is said."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import jpeg_bytes, refused, textured
from support.ray_nodes import local_cluster, lose_node

from fastselfie.data.beton.writer import BetonWriter
from fastselfie.data.conversion.encode import Recoding
from fastselfie.data.conversion.on_ray import store_on_cluster
from fastselfie.data.dataset import open_part
from fastselfie.errors import UserError

pytestmark = [pytest.mark.slow, pytest.mark.extra]

IMAGES = 400  # of which a task takes 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes; every hundredth image is unreadable."""
    root = tmp_path_factory.mktemp("photos")
    data = [jpeg_bytes(textured(seed, 90, 60)) for seed in range(8)]
    for i in range(IMAGES):
        path = root / "ab"[i % 2] / f"{i:03}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"no image" if i % 100 == 7 else data[i % len(data)])
    return root


def test_the_bytes_are_those_of_one_machine_though_nodes_die(folder, cli, tmp_path, monkeypatch):
    options = ("--max-side", "80", "--on-error", "skip", "--workers", "1")
    one, out = tmp_path / "one.beton", tmp_path / "out.beton"
    assert cli("prepare", folder, "--out", one, *options).status == 0
    lost, append = [], BetonWriter.append
    with local_cluster(2) as cluster:

        def loses_nodes(writer, *arguments):
            if writer.count == 70 and not lost:
                lose_node(cluster)
                lost.append(writer.count)
            append(writer, *arguments)

        monkeypatch.setattr(BetonWriter, "append", loses_nodes)
        result = cli("prepare", folder, "--out", out, *options[:-2], "--engine", "ray",
                     "--address", cluster.address)  # fmt: skip
    assert result.status == 0, result.err
    assert lost == [70]
    assert out.read_bytes() == one.read_bytes()
    lists = [path.with_suffix(".skipped.txt").read_text() for path in (out, one)]
    assert lists[0] == lists[1]
    assert lists[0].count("\n") == IMAGES // 100


def test_a_wrong_cluster_leaves_nothing(folder, cli, tmp_path):
    wanted = ("prepare", folder, "--out", tmp_path / "out.beton")
    refused(cli(*wanted, "--engine", "ray", "--address", "localhost:9"), "no Ray cluster answers")
    refused(cli(*wanted, "--address", "auto"), "add --engine ray")
    assert list(tmp_path.iterdir()) == []


class LacksImages:
    """A cluster of one node, on which no image is."""

    def map_in_order(self, work, tasks, workers):
        for part in tasks:
            yield part, [f"{part.name(i)}: no such file" for i in range(len(part))]


def test_a_node_without_the_images_is_no_reason_to_skip_them(folder):
    source = open_part(folder, "train").source

    def stored(index):
        part = source.select(np.array([index], dtype=np.int64))
        return list(store_on_cluster(LacksImages(), part, 0, Recoding(), None))

    damaged = next(i for i in range(IMAGES) if source.name(i).endswith("007.jpg"))
    assert stored(damaged) == [(0, f"{source.name(damaged)}: no such file")]
    with pytest.raises(UserError, match="a node of the cluster cannot read it, but this machine"):
        stored(damaged + 1)
