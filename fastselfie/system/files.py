"""Atomic writes: a file appears complete or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class NewFile:
    """A context manager that writes a file atomically.

    Data goes to a temporary file. At the end it is synced and renamed to `path`, then the folder is
    synced. After a kill, a full disk or an exception inside the block, `path` is unchanged.

    Args:
        path: The file to write or replace. Missing folders are created.

    Raises:
        OSError: Writing failed. Its file name is `path`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._temporary = temporary_name(path)
        with self._naming():
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():  # os.replace would fail too, but only at the end
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            self._file = open(self._temporary, "wb")  # noqa: SIM115 - closed by __exit__

    def write(self, data: bytes | memoryview) -> None:
        """Append `data`."""
        with self._naming():
            self._file.write(data)

    def __enter__(self) -> NewFile:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if error is None:
                with self._naming():
                    self._file.flush()
                    os.fsync(self._file.fileno())
                    self._file.close()
                    os.replace(self._temporary, self.path)
        finally:
            with suppress(OSError):  # closing flushes data that is discarded anyway
                self._file.close()
            self._temporary.unlink(missing_ok=True)  # missing after the rename
        if error is None:
            _sync(self.path.parent)

    @contextmanager
    def _naming(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error


def write_atomically(path: Path, data: bytes | memoryview | str) -> None:
    """Write `data` (text as UTF-8) to `path` atomically; see `NewFile`.

    Raises:
        OSError: Writing failed.
    """
    with NewFile(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def link_atomically(path: Path, target: Path) -> None:
    """Make `path` a hard link to `target` atomically, or a copy if the file system has no links.

    Raises:
        OSError: Linking and copying failed.
    """
    temporary = temporary_name(path)
    temporary.unlink(missing_ok=True)
    try:
        os.link(target, temporary)
    except OSError:
        write_atomically(path, target.read_bytes())
        return
    try:
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)  # os.replace keeps it if both are the same file
    _sync(path.parent)


def temporary_name(path: Path) -> Path:
    """Return the name that `path` has until it is complete."""
    return path.with_name(f".{path.name}.{os.getpid()}")


def _sync(folder: Path) -> None:
    """Sync the entries of `folder` to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
