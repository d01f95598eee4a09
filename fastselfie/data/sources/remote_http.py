"""Reads ranges of bytes over HTTP with urllib3.

fsspec reads HTTP with aiohttp, which takes several times the CPU time for each byte, and needs a
second request to see that the file is still the same.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote, urlsplit, urlunsplit

if TYPE_CHECKING:
    import urllib3

_CONNECTIONS = 16  # of a process to a server


class HttpStatusError(OSError):
    """A server answered with a status that is no content."""

    def __init__(self, status: int, reason: str | None) -> None:
        super().__init__(reason or f"status {status}")
        self.status = status


class Part(NamedTuple):
    """What a server answered.

    Attributes:
        data: The bytes; the whole file if the server ignores ranges.
        size: Of the whole file, in bytes; None if the server does not say.
        headers: Of the answer.
    """

    data: bytes
    size: int | None
    headers: Mapping[str, str]


def read_range(url: str, begin: int, end: int, silence: float) -> Part:
    """Read the bytes [begin, end) of a URL, in one attempt.

    Args:
        url: http:// or https://, possibly with a user and a password.
        begin: First byte.
        end: Byte behind the last.
        silence: Seconds without a byte after which the connection counts as broken.

    Raises:
        HttpStatusError: The server refuses.
        urllib3.exceptions.HTTPError: The connection broke.
    """
    from urllib3.util import Timeout, make_headers

    parts = urlsplit(url)
    user = None
    if parts.username is not None:
        user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    # Compressed bytes would not be those of the range.
    headers = {**make_headers(basic_auth=user), "Accept-Encoding": "identity"}
    headers["Range"] = f"bytes={begin}-{end - 1}"
    place = parts.netloc.rpartition("@")[2]
    answer = _pool().request(
        "GET", urlunsplit(parts._replace(netloc=place)), headers=headers, retries=_retries(),
        timeout=Timeout(connect=silence, read=silence),
    )  # fmt: skip
    if answer.status not in (200, 206):
        raise HttpStatusError(answer.status, answer.reason)
    total = re.fullmatch(r"bytes \d+-\d+/(\d+)", answer.headers.get("Content-Range", ""))
    size = len(answer.data) if answer.status == 200 else int(total[1]) if total else None
    return Part(answer.data, size, answer.headers)


@functools.cache
def _pool() -> urllib3.PoolManager:
    import urllib3

    return urllib3.PoolManager(maxsize=_CONNECTIONS, block=True)


def _retries() -> urllib3.Retry:
    """Follow redirects; the caller tries again after a failure."""
    import urllib3

    return urllib3.Retry(total=None, connect=0, read=0, other=0, status=0, redirect=10)
