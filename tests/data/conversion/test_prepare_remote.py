"""`prepare` from URLs: the bytes of local files, over connections that break, and every refusal."""

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
from conftest import REPOSITORY, jpeg_bytes, refused, textured
from helpers.datasets import write_parquet, write_tar
from support.file_server import serving

from fastselfie.data.beton.reader import BetonReader
from fastselfie.data.conversion.prepare import Options, prepare
from fastselfie.data.sources import remote_files
from fastselfie.data.sources.parts import open_part
from fastselfie.data.sources.remote import find_remote
from fastselfie.data.sources.remote_index import ShardIndex
from fastselfie.system import processes

pytestmark = pytest.mark.slow

SHARDS, IMAGES = 3, 100  # in each: two requests for its images
PREPARE = (sys.executable, "-m", "fastselfie", "prepare")


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


def environment():
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *sys.path])}


def left(out):
    return sorted(path.name for path in out.parent.glob(f"{out.stem}*"))


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
    assert left(out) == ["out.beton"]


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
    # One request to find the images of a file, and one for each run of them.
    assert len(spans) == SHARDS * (1 + -(-IMAGES // 64))


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
    assert "out.beton.index" in left(out)
    server.paths.clear()
    assert subprocess.run(command, env=environment(), check=False).returncode == 0
    # The files are read from their begin once, for the images.
    begins = [1 for method, _, span in server.paths if method == "GET" and span and "=0-" in span]
    assert len(begins) == 0
    assert out.read_bytes() == (originals / "shards.beton").read_bytes()
    assert left(out) == ["out.beton"]


def test_an_index_that_was_cut_by_a_kill_is_read_up_to_there(originals, server, tmp_path, cli):
    out = tmp_path / "out.beton"
    index = ShardIndex(tmp_path / "out.beton.index")
    open_part(find_remote(f"{server.url}/shards", index, 1), "train")
    path = tmp_path / "out.beton.index"
    path.write_bytes(path.read_bytes()[:-50])
    server.paths.clear()
    assert cli("prepare", f"{server.url}/shards", "--out", out, "--workers", 1).status == 0
    begins = [path for _, path, span in server.paths if span and "=0-" in span]
    assert begins == [f"/shards/photos-train-{SHARDS - 1:04}.tar"]
    assert out.read_bytes() == (originals / "shards.beton").read_bytes()


def test_a_file_that_changes_while_it_is_read_is_refused(own_server, tmp_path, cli):
    out = tmp_path / "out.beton"
    path = own_server.root / "shards" / "photos-train-0001.tar"
    content = path.read_bytes()

    def change(asked):
        """Once the file was looked through, as its images are read."""
        reads = [span for method, name, span in own_server.paths if name == asked and span]
        if asked.endswith("0001.tar") and len(reads) == 2 and path.read_bytes() == content:
            path.write_bytes(content[:600] + bytes([content[600] ^ 1]) + content[601:])
        return 200

    own_server.status = change
    options = ("--out", out, "--workers", 1, "--on-error", "skip")
    words = "photos-train-0001.tar: has changed since it was opened: delete what this command"
    result = cli("prepare", f"{own_server.url}/shards", *options)
    refused_last_line(result, words)
    assert not out.exists()
    own_server.status = lambda _: 200
    result = cli("prepare", f"{own_server.url}/shards", *options)
    refused_last_line(result, "was begun with another source or other options")
    for name in left(out):
        (tmp_path / name).unlink()
    assert cli("prepare", f"{own_server.url}/shards", *options).status == 0


def refused_last_line(result, words):
    """As `refused`, after the line about looking for images."""
    assert result.status == 2
    lines = result.err.splitlines()
    assert len(lines) <= 2
    assert lines[-1].startswith("error: ")
    assert words in lines[-1]


@pytest.mark.parametrize(("status", "workers"), [(403, 2), (404, 1), (410, 2), (401, 1), (400, 2)])
def test_a_server_that_refuses_midway_ends_the_command_even_if_images_may_be_skipped(
    originals, own_server, tmp_path, cli, status, workers
):
    out = tmp_path / "out.beton"

    def answer(asked):
        seen = sum(span is not None for _, name, span in own_server.paths if name == asked)
        return status if asked.endswith("0002.tar") and seen >= 2 else 200

    own_server.status = answer
    options = ("--out", out, "--workers", workers, "--on-error", "skip")
    result = cli("prepare", f"{own_server.url}/shards", *options)
    refused_last_line(result, "photos-train-0002.tar: ")
    assert f"({status}" in result.err
    assert not out.exists()
    own_server.status = lambda _: 200
    assert cli("prepare", f"{own_server.url}/shards", *options).status == 0
    assert out.read_bytes() == (originals / "shards.beton").read_bytes()


@pytest.mark.parametrize("status", [500, 503, 429, 408])
def test_a_failure_that_passes_is_waited_for(originals, server, tmp_path, cli, status):
    server.status = lambda _: 200 if len(server.paths) % 3 else status
    out = tmp_path / "out.beton"
    result = cli("prepare", f"{server.url}/tables", "--out", out, "--workers", 1)
    assert result.status == 0, result.err
    assert out.read_bytes() == (originals / "tables.beton").read_bytes()


def test_a_server_that_stays_broken_is_given_up(server, tmp_path, cli, monkeypatch):
    monkeypatch.setattr(remote_files, "_FIRST_DELAY", 0.001)
    monkeypatch.setattr(remote_files, "_LONGEST_DELAY", 0.001)
    server.status = lambda _: 503
    result = cli("prepare", f"{server.url}/shards", "--out", tmp_path / "a.beton")
    assert result.status == 2
    told, error = result.err.splitlines()
    assert told.endswith("trying again")
    assert "cannot be read in 10 attempts (Service Unavailable)" in error
    assert left(tmp_path / "a.beton") == []


def test_a_refusal_at_the_start_writes_nothing(server, originals, tmp_path, cli):
    out = tmp_path / "new" / "out.beton"

    def fails(url, *words):
        refused(cli("prepare", url, "--out", out), *words)
        assert not out.parent.exists()

    fails(f"{server.url}/none/", "/none/: not found (404): check the URL")
    fails(f"{server.url}/none.tar", "/none.tar: not found (404)")
    fails(f"{server.url}/shards/a-{{0..1}}.tar", "a-0.tar: not found (404)")
    fails(f"{server.url}/shards/a-*.tar", "a-*.tar: no file matches")
    fails(f"{server.url}/shards/a-{{2..1}}.tar", "{2..1} is empty")
    fails(f"{server.url}/shards/a-{{1..2}}.tar.gz", "a-1.tar.gz: is compressed: decompress it")
    fails(f"{server.url}/shards/a-*.tar.gz", "no file matches")
    fails(f"{server.url}/", "no .tar or .parquet files there")
    fails("nosuch://bucket/a.tar", "nosuch://bucket/a.tar: ", "pass s3://")
    server.status = lambda _: 403
    fails(f"{server.url}/shards/", "/shards/: access is denied (403): check the credentials")
    fails(f"{server.url}/a.tar?key=secret", "/a.tar: access is denied (403)")


def test_a_server_without_ranges_is_refused(server, tmp_path, cli, monkeypatch):
    monkeypatch.setattr(remote_files, "PIECE_BYTES", 1000)  # else one piece is the whole file
    server.ranges = False
    out = tmp_path / "out.beton"
    refused(cli("prepare", f"{server.url}/tables", "--out", out), "answers no range requests")


def test_files_of_two_kinds_and_files_that_cannot_be_read(own_server, tmp_path, cli):
    folder, out = own_server.root / "shards", tmp_path / "out.beton"
    (folder / "photos-train-0003.tar.gz").touch()
    result = cli("prepare", f"{own_server.url}/shards", "--out", out)
    refused(result, "shards/photos-train-0003.tar.gz: is compressed: decompress it")
    (folder / "photos-train-0003.tar.gz").rename(folder / "a.parquet")
    refused(cli("prepare", f"{own_server.url}/shards", "--out", out), "both .tar and .parquet")
    (folder / "a.parquet").write_bytes(b"no table" * 9)
    refused(cli("prepare", f"{own_server.url}/shards/a.parquet", "--out", out), "not a parquet")
    path = folder / "photos-train-0001.tar"
    path.write_bytes(path.read_bytes()[:70_000] + b"x" * 9000)
    url = f"{own_server.url}/shards/photos-train-000*.tar"
    result = cli("prepare", url, "--out", out)
    refused_last_line(result, "photos-train-0001.tar: not an uncompressed tar file, or a damaged")
    assert not out.exists()


@pytest.mark.parametrize("package", ["fsspec", "aiohttp"])
def test_a_missing_package_is_one_line(tmp_path, cli, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    result = cli("prepare", "https://localhost/a.tar", "--out", tmp_path / "a.beton")
    refused(result, "https://localhost/a.tar: ", "pip install 'fastselfie[remote]'")


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
