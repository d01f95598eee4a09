"""The search for images in tar files on a server: order, errors, and an early end."""

from __future__ import annotations

import threading

import pytest
from helpers.datasets import write_tar
from support.file_server import serving

from fastselfie.data.sources import remote_scan
from fastselfie.data.sources.background import DaemonThread
from fastselfie.data.sources.remote_files import open_remote
from fastselfie.data.sources.remote_index import ShardIndex
from fastselfie.data.sources.remote_listing import list_files
from fastselfie.data.sources.remote_scan import scan_files
from fastselfie.errors import UserError

FILES = 7  # more than threads


@pytest.fixture
def server(tmp_path):
    (tmp_path / "www").mkdir()
    for number in range(FILES):
        write_tar(tmp_path / "www" / f"{number}.tar", [(f"{number}.jpg", b"image")])
    with serving(tmp_path / "www") as found:
        yield found


def scanned(server, tmp_path):
    files = list_files(f"{server.url}/").files
    return scan_files("title", files, ShardIndex(tmp_path / "index"), 1)


def test_files_are_read_at_the_same_time_and_come_in_order(server, tmp_path):
    found = scanned(server, tmp_path)
    together = threading.Barrier(remote_scan._THREADS)

    def answer(path):
        if int(path[1]) < remote_scan._THREADS:
            together.wait(60)
        return 200

    server.status = answer
    assert [list(shard.images) for shard in found] == [[str(k)] for k in range(FILES)]


def test_the_first_file_with_an_error_ends_the_search(server, tmp_path):
    for number in (2, 4):
        (server.root / f"{number}.tar").write_bytes(b"x" * 2000)
    found = scanned(server, tmp_path)
    assert [list(next(found).images) for _ in range(2)] == [["0"], ["1"]]
    with pytest.raises(UserError, match=r"2\.tar: not an uncompressed tar file"):
        next(found)


def test_nothing_more_is_read_of_a_file_once_the_search_has_ended(server):
    (file, *_) = list_files(f"{server.url}/").files
    ended = threading.Event()
    reader = open_remote(file, 512, ended)
    assert len(reader.raw.read(512)) == 512
    ended.set()
    server.paths.clear()
    with pytest.raises(EOFError):
        reader.raw.read(512)
    assert server.paths == []


def test_a_search_that_is_closed_ends_its_threads(server, tmp_path, monkeypatch):
    events = []
    monkeypatch.setattr(
        remote_scan, "_scan", lambda file, ended: events.append(ended) or remote_scan.Shard()
    )
    found = scanned(server, tmp_path)
    next(found)
    assert not events[0].is_set()
    found.close()
    assert events[0].is_set()


def test_a_thread_gives_results_and_errors_in_turn():
    thread = DaemonThread()
    calls = [thread.submit(call) for call in (lambda: 3, lambda: 1 // 0, threading.current_thread)]
    thread.end()
    assert calls[0].result() == 3
    with pytest.raises(ZeroDivisionError):
        calls[1].result()
    calls[2].result().join(60)
    assert not calls[2].result().is_alive()
