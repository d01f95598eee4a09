"""A folder served over HTTP, with ranges of bytes, on loopback; it can break what it serves."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


class FileServer(ThreadingHTTPServer):
    """Serves `root`, its folders as pages of links.

    Attributes:
        breaks_every: The connection of every so many requests breaks: 20 is 5%. 0: none.
        delay: Seconds before each answer.
        ranges: Whether ranges of bytes are answered.
        status: Returns the status of a path, 200 for what is there; called before each answer.
        paths: Of all requests, in order: (method, path, range).
        broken: Connections that were broken.
    """

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.breaks_every = 0
        self.delay = 0.0
        self.ranges = True
        self.status: Callable[[str], int] = lambda path: 200
        self.paths: list[tuple[str, str, str | None]] = []
        self.broken = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed is no error."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FileServer

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        server, path = self.server, unquote(urlsplit(self.path).path)
        with server.lock:
            server.paths.append((self.command, self.path, self.headers.get("Range")))
            breaks = bool(server.breaks_every) and len(server.paths) % server.breaks_every == 0
            server.broken += breaks
        time.sleep(server.delay)
        status, file = server.status(path), server.root / path.strip("/")
        if status == 200 and not file.exists():
            status = 404
        if status != 200:
            self._send(status, {}, b"", breaks=False)
        elif file.is_dir():
            names = sorted(f"{each.name}/" if each.is_dir() else each.name
                           for each in file.iterdir())  # fmt: skip
            links = "".join(f'<a href="{name}">{name}</a>\n' for name in names)
            self._send(200, {"Content-Type": "text/html"}, links.encode() * with_body, breaks)
        else:
            self._send_file(file, with_body, breaks)

    def _send_file(self, path: Path, with_body: bool, breaks: bool) -> None:
        facts = path.stat()
        first, end, status = 0, facts.st_size, 200
        headers = {"ETag": f'"{facts.st_mtime_ns:x}-{end:x}"'}
        headers["Content-Type"] = "application/octet-stream"
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if wanted and self.server.ranges:
            first, end, status = int(wanted[1]), min(int(wanted[2]) + 1, end), 206
            headers["Content-Range"] = f"bytes {first}-{end - 1}/{facts.st_size}"
        headers["Content-Length"] = str(end - first)
        with path.open("rb") as file:
            file.seek(first)
            body = file.read(end - first) if with_body else b""
        self._send(status, headers, body, breaks)

    def _send(self, status: int, headers: dict[str, str], body: bytes, breaks: bool) -> None:
        """Send the answer; or half of the body, or nothing at all without one."""
        if not breaks or body:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if breaks else body)
        self.close_connection |= breaks

    def log_message(self, format: str, *args: object) -> None:
        """Not on standard error."""


@contextmanager
def serving(root: Path) -> Iterator[FileServer]:
    """Serve a folder inside the block."""
    with FileServer(root) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
