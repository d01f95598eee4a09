"""Serve a page on localhost, rendered anew for each request."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from contextlib import suppress
from html import escape
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from fastselfie.errors import UserError
from fastselfie.system.console import say

HOST = "127.0.0.1"
REFRESH = 5  # seconds


class _PageServer(ThreadingHTTPServer):
    def __init__(self, make: Callable[[], str], port: int) -> None:
        self.make = make
        self.lock = threading.Lock()  # matplotlib draws one page at a time
        super().__init__((HOST, port), _Handler)


class _Handler(BaseHTTPRequestHandler):
    timeout = 10  # seconds, for connections that a browser opens and does not use
    server: _PageServer

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        with suppress(ConnectionError, TimeoutError):  # the browser has left
            # Refuse DNS rebinding: a web page whose host name points here sends that name. The
            # header has no port if it is 80.
            if self.headers.get("Host", "").partition(":")[0] not in (HOST, "localhost"):
                self.send_error(HTTPStatus.FORBIDDEN)
            elif self.path != "/":
                self.send_error(HTTPStatus.NOT_FOUND)
            else:
                self._send_page()

    def _send_page(self) -> None:
        try:
            with self.server.lock:
                page = self.server.make().encode()
        except (UserError, OSError) as error:  # the folder is missing or being replaced
            page = f"{escape(str(error))}\n".encode()
            self._send(HTTPStatus.SERVICE_UNAVAILABLE, page, ("Refresh", str(REFRESH)))
            return
        self._send(HTTPStatus.OK, page)

    def _send(self, status: HTTPStatus, page: bytes, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(page)))
        self.send_header("Cache-Control", "no-store")
        for header in headers:
            self.send_header(*header)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(page)

    def log_message(self, format: str, *values: object) -> None:
        del format, values  # no line per request


def open_server(make: Callable[[], str], port: int) -> ThreadingHTTPServer:
    """Open a server on localhost, which serves one page at `/`.

    Args:
        make: Returns the page.
        port: TCP port; 0: any free one.

    Raises:
        UserError: Another program uses the port.
    """
    try:
        return _PageServer(make, port)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise UserError(
            f"port {port} is in use: give another --port, or 0 for any free one"
        ) from error


def serve(make: Callable[[], str], port: int) -> None:
    """Serve a page until Ctrl-C.

    Args:
        make: See `open_server`.
        port: See `open_server`.

    Raises:
        UserError: See `open_server`.
    """
    with open_server(make, port) as server:
        say(f"serving http://{HOST}:{server.server_port}/ on this machine only; Ctrl-C stops it")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            say("stopped serving")
