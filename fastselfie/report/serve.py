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


class PageServer(ThreadingHTTPServer):
    """A server on localhost, which serves one page at `/`.

    Args:
        make: Returns the page.
        port: TCP port; 0: any free one.

    Raises:
        UserError: Another program uses the port.
    """

    def __init__(self, make: Callable[[], str], port: int) -> None:
        self.make = make
        self.lock = threading.Lock()  # matplotlib draws one page at a time
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise UserError(f"port {port} is in use: pass another --port, or 0 for any") from error


class _Handler(BaseHTTPRequestHandler):
    timeout = 10  # seconds, for connections that a browser opens and does not use
    server: PageServer

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

    do_HEAD = do_GET

    def _send_page(self) -> None:
        status = HTTPStatus.OK
        try:
            with self.server.lock:
                page = self.server.make().encode()
        except (UserError, OSError) as error:  # the folder is missing or being replaced
            status, page = HTTPStatus.SERVICE_UNAVAILABLE, f"{escape(str(error))}\n".encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(page)))
        self.send_header("Cache-Control", "no-store")
        if status != HTTPStatus.OK:
            self.send_header("Refresh", str(REFRESH))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(page)

    def log_message(self, format: str, *values: object) -> None:
        del format, values  # no line per request


def serve(make: Callable[[], str], port: int) -> None:
    """Serve a page until Ctrl-C.

    Args:
        make: See `PageServer`.
        port: See `PageServer`.

    Raises:
        UserError: See `PageServer`.
    """
    with PageServer(make, port) as server:
        say(f"serving http://{HOST}:{server.server_port}/ on this machine only; Ctrl-C stops it")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            say("stopped serving")
