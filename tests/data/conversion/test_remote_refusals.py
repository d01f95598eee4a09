"""`prepare` from servers that refuse, fail or lack something: one line, nothing half-written."""

from __future__ import annotations

import sys

import pytest
from conftest import refused
from helpers.datasets import names_beside

from fastselfie.data.sources import remote_files

pytestmark = pytest.mark.slow


def refused_last_line(result, words):
    """As `refused`, after the line about looking for images."""
    assert result.status == 2
    lines = result.err.splitlines()
    assert len(lines) <= 2
    assert lines[-1].startswith("error: ")
    assert words in lines[-1]


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
    for name in names_beside(out):
        (tmp_path / name).unlink()
    assert cli("prepare", f"{own_server.url}/shards", *options).status == 0


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
    assert names_beside(tmp_path / "a.beton") == []


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
