"""`fastselfie report` from the command line, and what its server gives to whom."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import urllib.error
import urllib.request

import pytest
from helpers.runs import make_run

from fastselfie.report.serve import PageServer


@pytest.fixture
def served():
    """(port, pages): a server whose pages a test puts there; an error among them is raised."""
    pages = []

    def make():
        page = pages[-1]
        if isinstance(page, Exception):
            raise page
        return page

    with PageServer(make, 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port, pages
        server.shutdown()


def get(port, path, host=None, method="GET"):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, headers={"Host": host} if host else {})
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def test_one_run_is_written_anew(cli, tmp_path):
    run = tmp_path / "run"
    make_run(run)
    result = cli("report", run)
    assert result.status == 0, result.err
    assert json.loads(result.out.splitlines()[-1]) == {"report": str(run / "report.html")}
    page = (run / "report.html").read_text(encoding="utf-8")
    assert ">finished<" in page
    assert "<h1>run</h1>" in page  # its folder: several may have one config
    other = tmp_path / "deep" / "page.html"
    assert cli("report", run, "--out", other).status == 0
    assert other.exists()


def test_several_are_compared(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "c"):
        make_run(tmp_path / name)
    assert cli("report", "a", "b", "c").status == 0
    assert "<h1>3 runs</h1>" in (tmp_path / "compare.html").read_text(encoding="utf-8")
    assert not (tmp_path / "a" / "report.html").exists()


def test_mistakes_are_one_line(cli, tmp_path):
    make_run(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        for arguments, words in (
            ([tmp_path / "empty"], "empty: not a run"),
            ([tmp_path / "run", tmp_path / "none"], "none: not a run"),
            ([tmp_path / "run", "--out", tmp_path], "Is a directory: pass a file name"),
            ([tmp_path / "run", "--serve", "--out", "x.html"], "--serve writes no file"),
            ([tmp_path / "empty", "--serve"], "empty: not a run"),
            ([tmp_path / "run", "--serve", "--port", port], f"port {port} is in use"),
        ):
            result = cli("report", *arguments)
            assert result.status == 2
            assert words in result.err
            assert len(result.err.strip().splitlines()) == 1


def test_the_server_gives_the_page_and_nothing_else(served, tmp_path):
    port, pages = served
    pages.append("first é")
    assert get(port, "/") == (200, "first é")
    pages.append("second")
    assert get(port, "/") == (200, "second")  # made anew
    assert get(port, "/", method="HEAD") == (200, "")
    for path in ("/etc/passwd", "/../../etc/passwd", "/config.yaml", "//etc/passwd", "/?a",
                 "/%2e%2e/config.yaml", "/report.html"):  # fmt: skip
        assert get(port, path)[0] == 404
    assert get(port, "/", host="evil.example:80")[0] == 403
    assert get(port, "/", host=f"localhost:{port}")[0] == 200
    assert get(port, "/", host="127.0.0.1")[0] == 200  # as a browser asks on port 80
    pages.append(OSError("gone <b>"))
    with urlopen_refused(port) as error:
        assert error.code == 503
        assert error.headers["Refresh"] == "5"  # an open tab comes back by itself
        assert "gone &lt;b&gt;" in error.read().decode()
    pages.append("third")
    assert get(port, "/") == (200, "third")


def urlopen_refused(port):
    with pytest.raises(urllib.error.HTTPError) as found:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60)
    return found.value


def test_a_browser_that_leaves_is_no_news(served, capfd):
    port, pages = served
    pages.append("x" * 10_000_000)  # more than the system's buffers hold
    with socket.create_connection(("127.0.0.1", port)) as browser:
        # Closed with a reset, and what the server still writes is refused.
        browser.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        browser.sendall(f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
        browser.recv(1)
    pages.append("next")
    assert get(port, "/") == (200, "next")
    assert capfd.readouterr().err == ""


def test_the_server_is_of_this_machine_alone(served):
    port, _ = served
    with open("/proc/net/tcp", encoding="ascii") as file:
        listening = [line.split()[1] for line in file if line.split()[3] == "0A"]
    assert [address for address in listening if address.endswith(f":{port:04X}")] == [
        f"0100007F:{port:04X}"
    ]


def test_a_connection_that_asks_for_nothing_keeps_nobody_waiting(served):
    """Browsers open one in advance."""
    port, pages = served
    pages.append("page")
    with socket.create_connection(("127.0.0.1", port)):
        assert get(port, "/") == (200, "page")


def test_ctrl_c_ends_it_politely(tmp_path):
    make_run(tmp_path / "run", done=False)
    process = subprocess.Popen(
        [sys.executable, "-m", "fastselfie", "report", str(tmp_path / "run"), "--serve", "--port",
         "0"], stderr=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip
    try:
        said = process.stderr.readline()
        port = int(re.search(r"http://127.0.0.1:(\d+)/", said)[1])
        assert get(port, "/")[0] == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert process.stderr.read() == "stopped serving\n"
    finally:
        process.kill()
