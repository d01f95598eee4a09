"""Files on servers (s3://, gs://, https://, hf://): ranges of bytes, retried, of one version.

Needs fsspec and its package for each kind of URL, which are imported where they are used.
Credentials come from where these packages look for them.
"""

from __future__ import annotations

import io
import random
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from threading import Event
from typing import Any, BinaryIO, TypeVar
from urllib.parse import urlsplit, urlunsplit

from fastselfie.data.sources.remote_http import read_range
from fastselfie.errors import UserError
from fastselfie.system.console import say

Result = TypeVar("Result")

PIECE_BYTES = 8 << 20  # of one request: a broken connection loses no more
_HTTP = ("http://", "https://")
_TRIES = 10
_FIRST_DELAY, _LONGEST_DELAY = 0.1, 30.0  # seconds; they double, to a minute in all
_TOLD_AFTER = 4  # tries: what the user waits for is then said
_SILENCE = 60.0  # seconds without a byte after which an HTTP connection counts as broken
# Statuses that another try may change: too slow, too early, too many requests.
_PASSING = frozenset({408, 425, 429})
_BUGS = (TypeError, AttributeError, NameError, AssertionError)
# What names the version of a file, by the names of each file system.
_VERSIONS = ("ETag", "etag", "blob_id", "generation", "xet_hash", "Content-MD5", "Last-Modified",
             "LastModified", "mtime")  # fmt: skip


def is_url(text: str) -> bool:
    """Return whether a dataset is named by a URL rather than a path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) is not None


def shown(url: str) -> str:
    """Return a URL as messages and file lists show it: without a password or a signature."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


@dataclass(frozen=True)
class RemoteFile:
    """One file on a server.

    Attributes:
        url: Where it is.
        title: What messages call it.
        size: In bytes.
        version: What the server calls its content, for example an ETag; "" if it names none.
        pinned: Whether the URL itself names the version, so that the content cannot change.
    """

    url: str
    title: str
    size: int
    version: str
    pinned: bool = False

    def __str__(self) -> str:
        return self.title

    @property
    def name(self) -> str:
        """The last component of its path."""
        return PurePosixPath(self.title).name

    def read(self, begin: int, end: int) -> bytes:
        """Return the bytes [begin, end), each piece retried if the connection breaks.

        Raises:
            UserError: They cannot be read, or the file has changed.
        """
        pieces = range(begin, end, PIECE_BYTES)
        return b"".join(self._piece(at, min(at + PIECE_BYTES, end)) for at in pieces)

    def _piece(self, begin: int, end: int) -> bytes:
        over_http = self.url.startswith(_HTTP)
        try:
            data = retried(self.title, partial(self._over_http if over_http else self._by_fsspec,
                                               begin, end))  # fmt: skip
        except UserError:
            self._require_same(None)  # a file that has become shorter cannot be read either
            raise
        if not over_http:
            self._require_same(None)  # after the read, so its bytes are surely of this version
        if len(data) > end - begin:
            raise UserError(
                f"{self}: its server answers no range requests: download the file, and pass it"
            )
        return data

    def _over_http(self, begin: int, end: int) -> bytes:
        part = read_range(self.url, begin, end, _SILENCE)
        self._require_same({"size": part.size, **part.headers})
        return _whole(part.data, end - begin)

    def _by_fsspec(self, begin: int, end: int) -> bytes:
        system, path = file_system(self.url)
        if system.async_impl:
            return _whole(system.cat_file(path, start=begin, end=end), end - begin)
        # Its cat_file would read ahead.
        with system.open(path, "rb", cache_type="none", size=self.size) as file:
            file.seek(begin)
            return _whole(file.read(end - begin), end - begin)

    def _require_same(self, info: Mapping[str, Any] | None) -> None:
        """Check that the server still has this version: by what it says of it, or by asking it."""
        if self.pinned:
            return
        if info is None:
            info = retried(self.title, lambda: info_of(self.url))
        if (info.get("size"), version_of(info)) != (self.size, self.version):
            raise UserError(
                f"{self}: has changed since it was opened: delete what this command has begun to "
                "write (FILE.beton.*), and run it again"
            )


def _whole(data: bytes, wanted: int) -> bytes:
    if len(data) < wanted:
        raise OSError(f"{len(data)} of {wanted} bytes came")
    return data


def open_remote(file: RemoteFile, block: int, ended: Event | None = None) -> BinaryIO:
    """Open a file for tarfile or pyarrow.

    Args:
        file: The file.
        block: Bytes to ask for at least. A seek beyond a block skips what lies between.
        ended: When set, the next read raises EOFError: nobody waits for it.
    """
    return io.BufferedReader(_Reader(file, block, ended))


class _Reader(io.RawIOBase):
    """Reads blocks and keeps the last two; see `open_remote`."""

    def __init__(self, file: RemoteFile, block: int, ended: Event | None) -> None:
        super().__init__()
        self._file, self._block, self._ended, self._at = file, block, ended, 0
        self._blocks: list[tuple[int, bytes]] = []

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {0: 0, 1: self._at, 2: self._file.size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer, unless the file ends."""
        view, done = memoryview(buffer).cast("B"), 0
        while done < len(view) and self._at < self._file.size:
            begin, block = self._find(len(view) - done)
            part = memoryview(block)[self._at - begin :][: len(view) - done]
            view[done : done + len(part)] = part
            done += len(part)
            self._at += len(part)
        return done

    def _find(self, wanted: int) -> tuple[int, bytes]:
        """Return a block with the byte at the current place, and where it begins."""
        for begin, block in self._blocks:
            if begin <= self._at < begin + len(block):
                return begin, block
        if self._ended is not None and self._ended.is_set():
            raise EOFError
        end = min(self._at + max(wanted, self._block), self._file.size)
        found = self._at, self._file.read(self._at, end)
        self._blocks = [*self._blocks[-1:], found]
        return found


def file_system(url: str) -> tuple[Any, str]:
    """Return fsspec's file system of a URL and the path in it.

    Raises:
        UserError: A package is missing, or the kind of URL is unknown.
    """
    try:
        import fsspec
    except ImportError as error:
        raise UserError(f"{shown(url)}: needs fsspec: pip install 'fastselfie[remote]'") from error
    options: dict[str, Any] = {"use_listings_cache": False}
    try:
        if url.startswith(_HTTP):
            import aiohttp

            limits = aiohttp.ClientTimeout(total=None, sock_connect=_SILENCE, sock_read=_SILENCE)
            options["client_kwargs"] = {"timeout": limits}
        system, path = fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{shown(url)}: {reason}: pip install 'fastselfie[remote]'") from error
    except ValueError as error:
        raise UserError(f"{shown(url)}: {error}: pass s3://, gs://, https:// or hf://") from error
    return system, path


def info_of(url: str) -> dict[str, Any]:
    """Return what a file system knows of a file, at least its size."""
    system, path = file_system(url)
    found: dict[str, Any] = system.info(path)
    return found


def version_of(info: Mapping[str, Any]) -> str:
    """Return what a file system calls the content of a file, "" if nothing does."""
    return next((str(info[key]) for key in _VERSIONS if info.get(key)), "")


def retried(title: str, attempt: Callable[[], Result]) -> Result:
    """Return what `attempt` returns, tried again with growing delays while the failure may pass.

    Args:
        title: What messages call the file or folder.
        attempt: Reads from a server.

    Raises:
        UserError: The server refuses, or no attempt succeeded.
    """
    delay = _FIRST_DELAY
    for tries in range(1, _TRIES + 1):
        try:
            return attempt()
        except (UserError, *_BUGS):
            raise
        except Exception as error:  # each file system raises types of its own
            failure = _cause_of(error)
        if (refusal := _refusal(failure)) is not None:
            raise UserError(f"{title}: {refusal}") from failure
        if tries == _TOLD_AFTER:
            say(f"{title}: {_reason(failure)}: trying again")
        if tries < _TRIES:
            # Of random length, so that many workers do not come back at the same moment.
            time.sleep(delay * random.uniform(0.5, 1.0))
            delay = min(2 * delay, _LONGEST_DELAY)
    raise UserError(
        f"{title}: cannot be read in {_TRIES} attempts ({_reason(failure)}): check the network, "
        "then run the same command to resume"
    ) from failure


def _cause_of(error: Exception) -> Exception:
    """Return the failure itself: fsspec says that a file is missing whatever went wrong."""
    cause = error.__cause__
    return cause if isinstance(error, FileNotFoundError) and isinstance(cause, Exception) else error


def _refusal(error: Exception) -> str | None:
    """Return why another attempt would fail in the same way; None if it may succeed."""
    status = _status_of(error)
    if status in (404, 410) or (status is None and isinstance(error, FileNotFoundError)):
        return f"not found ({status or 404}): check the URL"
    denied = isinstance(error, PermissionError) or "Credentials" in type(error).__name__
    if status in (401, 403) or denied:
        return f"access is denied ({status or 403}): check the credentials, see docs/data.md"
    if status is not None and 400 <= status < 500 and status not in _PASSING:
        return f"the server refuses ({status}, {_reason(error)}): check the URL"
    return None


def _status_of(error: Exception) -> int | None:
    """Return the HTTP status that an exception of any file system holds, None without one."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore's
        found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return found if isinstance(found, int) else None
    for holder, name in ((error, "status"), (error, "code"), (response, "status_code")):
        status = getattr(holder, name, None)
        if isinstance(status, int):
            return status
    return None


def _reason(error: Exception) -> str:
    """Return one line without the URL, which may hold a signature."""
    text = getattr(error, "message", None) or getattr(error, "strerror", None) or str(error)
    words = re.sub(r"\S+://\S+", "", " ".join(str(text).split())).strip()
    return words or type(error).__name__
