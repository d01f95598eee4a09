"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType


class NewFile:
    """A file that is called `path` once it is whole: a context manager.

    Until then it has a temporary name. At the end it is synced and renamed, then the folder is
    synced, so a kill, a full disk or an error inside the block leaves what stood under `path`
    untouched. Raises OSError with `path` in it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._temporary = temporary_name(path)
        with self._naming():
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():  # rename would say so, but after the work is done
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            self._file = open(self._temporary, "wb")  # noqa: SIM115 - closed by __exit__

    def write(self, data: bytes | memoryview) -> None:
        with self._naming():
            self._file.write(data)

    def __enter__(self) -> NewFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                with self._naming():
                    self._file.flush()
                    os.fsync(self._file.fileno())
                    self._file.close()
                    os.replace(self._temporary, self.path)
        finally:
            with suppress(OSError):  # closing writes what is not wanted any more
                self._file.close()
            self._temporary.unlink(missing_ok=True)  # renamed it is not there
        if kind is None:
            _sync(self.path.parent)

    @contextmanager
    def _naming(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error


def write_atomically(path: Path, data: bytes | memoryview | str) -> None:
    """Write `data` (text as UTF-8) under `path` in one step, see `NewFile`. Raises OSError."""
    with NewFile(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def link_atomically(path: Path, target: Path) -> None:
    """Make `path` another name of the file `target`, in one step and without writing it again.

    Where the file system has no hard links it becomes a copy. Raises OSError.
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
        temporary.unlink(missing_ok=True)  # rename does nothing where both name one file already
    _sync(path.parent)


def temporary_name(path: Path) -> Path:
    """What `path` is called until it is whole."""
    return path.with_name(f".{path.name}.{os.getpid()}")


def _sync(folder: Path) -> None:
    """Make the names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
