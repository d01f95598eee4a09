"""Ranges over HTTP: who asks, redirects, and what a server that ignores ranges sends."""

from __future__ import annotations

import pytest
from support.file_server import serving

from fastselfie.data.sources.remote_http import HttpStatusError, read_range


@pytest.fixture
def server(tmp_path):
    (tmp_path / "file").write_bytes(bytes(range(100)))
    with serving(tmp_path) as found:
        yield found


def test_a_range_with_its_size_and_version(server):
    part = read_range(f"{server.url}/file", 10, 20, 5.0)
    assert part.data == bytes(range(10, 20))
    assert part.size == 100
    assert part.headers["etag"] == part.headers["ETag"] != ""


def test_a_server_without_ranges_sends_the_whole_file(server):
    server.ranges = False
    part = read_range(f"{server.url}/file", 10, 20, 5.0)
    assert (len(part.data), part.size) == (100, 100)


def test_a_password_is_sent_and_not_part_of_the_path_and_redirects_are_followed(
    server, monkeypatch
):
    seen, answer = [], server.RequestHandlerClass._answer

    def redirecting(handler, with_body):
        seen.append((handler.path, handler.headers.get("Authorization")))
        if handler.path == "/old":
            handler._send(302, {"Location": "/file"}, b"", breaks=False)
        else:
            answer(handler, with_body)

    monkeypatch.setattr(server.RequestHandlerClass, "_answer", redirecting)
    url = server.url.replace("//", "//me:p%40ss@")
    assert read_range(f"{url}/old", 0, 3, 5.0).data == bytes(range(3))
    assert seen == [(path, "Basic bWU6cEBzcw==") for path in ("/old", "/file")]


def test_a_refusal_has_its_status(server):
    with pytest.raises(HttpStatusError) as caught:
        read_range(f"{server.url}/none", 0, 3, 5.0)
    assert caught.value.status == 404
