"""`prepare` from URLs: the bytes of local files, while connections break; buckets; the Hub."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import REPOSITORY, refused
from helpers.datasets import names_beside
from support.file_server import serving

from fastselfie.data.beton.reader import BetonReader
from fastselfie.data.conversion.prepare import Options, prepare
from fastselfie.data.sources.parts import open_part
from fastselfie.data.sources.remote import find_remote
from fastselfie.data.sources.remote_index import ShardIndex
from fastselfie.system import processes

pytestmark = pytest.mark.slow

PREPARE = (sys.executable, "-m", "fastselfie", "prepare")


def environment():
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *sys.path])}


@pytest.mark.parametrize("name", ["shards", "tables"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_url_makes_the_bytes_of_local_files_while_connections_break(
    originals, server, tmp_path, cli, name, workers
):
    server.breaks_every = 5  # 5% would break none of so few requests
    out = tmp_path / "out.beton"
    result = cli("prepare", f"{server.url}/{name}/", "--out", out, "--workers", workers)
    assert result.status == 0, result.err
    assert server.broken > 0
    assert out.read_bytes() == (originals / f"{name}.beton").read_bytes()
    assert names_beside(out) == ["out.beton"]


def test_many_requests_of_which_one_in_twenty_breaks(originals, tmp_path, cli):
    """A row group for each image: some hundred requests."""
    folder = tmp_path / "groups"
    folder.mkdir()
    table = pq.read_table(originals / "www/tables/data/train-00000-of-00001.parquet")
    pq.write_table(table, folder / "train.parquet", row_group_size=1)
    prepare(folder, tmp_path / "local.beton", Options(workers=1))
    with serving(tmp_path) as server:
        server.breaks_every = 20
        result = cli("prepare", f"{server.url}/groups/", "--out", tmp_path / "out.beton")
        assert result.status == 0, result.err
        assert server.broken >= 5
    assert (tmp_path / "out.beton").read_bytes() == (tmp_path / "local.beton").read_bytes()


@pytest.mark.parametrize(
    "url",
    [
        "shards/photos-train-{0000..0002}.tar",
        "shards/photos-train-*.tar",
        "shards/photos-train-{0000..0002}.tar?X-Signature=secret",
    ],
)
def test_a_pattern_of_urls(originals, server, tmp_path, cli, url):
    out = tmp_path / "out.beton"
    result = cli("prepare", f"{server.url}/{url}", "--out", out, "--workers", 1)
    assert result.status == 0, result.err
    assert "secret" not in result.out + result.err
    assert out.read_bytes() == (originals / "shards.beton").read_bytes()


def test_one_worker_starts_no_process_and_reads_each_tar_file_twice(
    originals, server, tmp_path, monkeypatch
):
    def started(*_):
        raise AssertionError("a process was started")

    monkeypatch.setattr(processes, "worker_pool", started)
    out = tmp_path / "out.beton"
    prepare(f"{server.url}/shards", out, Options(workers=1))
    assert out.read_bytes() == (originals / "shards.beton").read_bytes()
    spans = [re.fullmatch(r"bytes=(\d+)-(\d+)", span) for _, _, span in server.paths if span]
    sent = sum(int(span[2]) + 1 - int(span[1]) for span in spans)
    whole = sum(path.stat().st_size for path in (originals / "www" / "shards").iterdir())
    assert whole < sent <= 2 * whole
    # One request to find the 100 images of a file, and one for each 64 of them.
    assert len(spans) == 3 * (1 + 2)


@pytest.mark.parametrize("stage", ["scan", "conversion"])
def test_ctrl_c_does_not_wait_for_a_server_that_is_silent(server, tmp_path, stage):
    silent, ended = threading.Event(), threading.Event()

    def answer(asked):
        reads = sum(span is not None for _, name, span in server.paths if name == asked)
        if asked.endswith("0001.tar") and reads == (1 if stage == "scan" else 2):
            silent.set()
            ended.wait()
        return 200

    server.status = answer
    process = subprocess.Popen(
        [*PREPARE, f"{server.url}/shards", "--out", str(tmp_path / "out.beton"), "--workers", "1"],
        env=environment(), stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        assert silent.wait(60)
        os.killpg(process.pid, signal.SIGINT)
        errors = process.communicate(timeout=30)[1]  # the server stays silent for longer
    finally:
        ended.set()
        process.kill()
    assert process.returncode == 130
    assert errors.endswith("interrupted: run the same command to resume\n")


def test_a_worker_that_reads_from_a_server_starts_without_torch():
    modules = ("sources.remote_sources", "sources.remote_scan", "conversion.store_all")
    imports = ", ".join(f"fastselfie.data.{module}" for module in modules)
    script = f"import sys, {imports}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], env=environment(), check=True,
                          stdout=subprocess.PIPE, text=True)  # fmt: skip
    assert done.stdout == "False\n"


def test_the_other_part_and_one_file(originals, server, tmp_path, cli):
    out = tmp_path / "out.beton"
    options = ("--out", out, "--workers", 1, "--part", "test")
    assert cli("prepare", f"{server.url}/tables", *options).status == 0
    local = tmp_path / "local.beton"
    prepare(originals / "www" / "tables", local, Options(workers=1, part="test"))
    assert out.read_bytes() == local.read_bytes()
    out.unlink()
    one = f"{server.url}/tables/data/train-00000-of-00001.parquet"
    assert json.loads(cli("prepare", one, *options, "--json").out)["images"] == 40


def test_shards_of_a_url_join_to_the_same_bytes(originals, server, tmp_path, cli):
    parts = [tmp_path / f"part-{k}.beton" for k in (1, 2, 3)]
    for k, part in enumerate(parts, start=1):
        options = ("--shard", f"{k}/3", "--workers", 1)
        assert cli("prepare", f"{server.url}/shards", "--out", part, *options).status == 0
    assert cli("join", *parts, "--out", tmp_path / "out.beton").status == 0
    assert (tmp_path / "out.beton").read_bytes() == (originals / "shards.beton").read_bytes()


def test_each_run_is_one_request_for_consecutive_images_of_a_file(server, tmp_path):
    index = ShardIndex(tmp_path / "index")
    source = open_part(find_remote(f"{server.url}/shards", index, 1), "train").source
    for start in (0, 37, 299, 300):
        runs = list(source.runs(start))
        assert np.concatenate([[], *runs]).tolist() == list(range(start, 300))
        for run in runs:
            assert len(np.unique(source.shard[run])) == 1
    source = open_part(find_remote(f"{server.url}/tables", index, 1), "train").source
    assert [len(run) for run in source.runs(3)] == [37]
    server.paths.clear()
    assert source.select(np.asarray([5])).encoded(0) == source.encoded(5)


def test_a_killed_command_goes_on_without_looking_for_the_images_again(originals, server, tmp_path):
    out = tmp_path / "out.beton"
    command = [*PREPARE, f"{server.url}/shards", "--out", str(out), "--workers", "2"]
    for _ in range(2):
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen(command, env=environment(), start_new_session=True, **silent)
        while not (journal := tmp_path / "out.beton.journal").exists() or (
            journal.stat().st_size == 0
        ):
            assert process.poll() is None
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert "out.beton.index" in names_beside(out)
    server.paths.clear()
    assert subprocess.run(command, env=environment(), check=False).returncode == 0
    # The files are read from their begin once, for the images.
    begins = [1 for method, _, span in server.paths if method == "GET" and span and "=0-" in span]
    assert len(begins) == 0
    assert out.read_bytes() == (originals / "shards.beton").read_bytes()
    assert names_beside(out) == ["out.beton"]


def test_an_index_that_was_cut_by_a_kill_is_read_up_to_there(originals, server, tmp_path, cli):
    out = tmp_path / "out.beton"
    index = ShardIndex(tmp_path / "out.beton.index")
    open_part(find_remote(f"{server.url}/shards", index, 1), "train")
    path = tmp_path / "out.beton.index"
    path.write_bytes(path.read_bytes()[:-50])
    server.paths.clear()
    assert cli("prepare", f"{server.url}/shards", "--out", out, "--workers", 1).status == 0
    begins = [path for _, path, span in server.paths if span and "=0-" in span]
    assert begins == ["/shards/photos-train-0002.tar"]
    assert out.read_bytes() == (originals / "shards.beton").read_bytes()


def test_images_in_a_bucket(originals, tmp_path, cli, monkeypatch):
    import boto3
    from moto.server import ThreadedMotoServer

    keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    for name in (*keys, "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, "us-east-1")
    bucket = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    bucket.start()
    try:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*bucket.get_host_and_port()))
        client = boto3.client("s3")
        client.create_bucket(Bucket="images")
        for path in (originals / "www").rglob("*.*"):
            client.upload_file(str(path), "images", str(path.relative_to(originals / "www")))
        for name, url in (("shards", "s3://images/shards"), ("tables", "s3://images/tables/"),
                          ("shards", "s3://images/shards/photos-train-*.tar")):  # fmt: skip
            out = tmp_path / f"{len(url)}.beton"
            result = cli("prepare", url, "--out", out, "--workers", 1)
            assert result.status == 0, result.err
            assert out.read_bytes() == (originals / f"{name}.beton").read_bytes()
        for url in ("s3://nobucket/a", "s3://images/none.tar", "s3://images/none/"):
            refused(cli("prepare", url, "--out", tmp_path / "a.beton"), f"{url}: not found (404)")
    finally:
        bucket.stop()


def test_a_repository_of_the_hub_is_read_at_its_newest_commit(
    originals, server, tmp_path, cli, monkeypatch
):
    """The few requests of the hub that are made, answered as it answers them."""
    commit = "c" * 40
    root, asked = originals / "www" / "tables", []

    def hub(handler, with_body):
        path = handler.path.split("?")[0]
        asked.append((path, handler.headers.get("Authorization")))
        if file := re.fullmatch(rf"/datasets/o/n/resolve/{commit}/(.*)", path):
            handler._send_file(root / file[1], with_body, False)
            return
        body = None
        if path in ("/api/datasets/o/n", f"/api/datasets/o/n/revision/{commit}"):
            body = {"id": "o/n", "sha": commit}
        elif listed := re.fullmatch(rf"/api/datasets/o/n/tree/{commit}/?(.*)", path):
            body = [{"type": "directory" if each.is_dir() else "file", "oid": "b" * 40,
                     "path": str(each.relative_to(root)), "size": each.stat().st_size}
                    for each in sorted((root / listed[1]).iterdir())]  # fmt: skip
        status = 200 if body else 403 if "gated" in path else 404
        headers = {"Content-Type": "application/json"}
        handler._send(status, headers, json.dumps(body or {}).encode() * with_body, False)

    monkeypatch.setattr(server.RequestHandlerClass, "_answer", hub)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    out = tmp_path / "out.beton"
    result = cli("prepare", "hf://datasets/o/n", "--out", out, "--workers", 1)
    assert result.status == 0, result.err
    reader, local = BetonReader(out), BetonReader(originals / "tables.beton")
    assert [reader.image(i).tobytes() for i in range(40)] == [
        local.image(i).tobytes() for i in range(40)
    ]
    assert reader.info["source"] == "parquet n, train"
    assert [path for path, token in asked if "/o/n" in path and token != "Bearer hf_secret"] == []
    for name, words in (("o/none", "not found (404)"), ("o/gated", "access is denied (403)")):
        url = f"hf://datasets/{name}"
        refused(cli("prepare", url, "--out", tmp_path / "a.beton"), f"{url}: {words}")
