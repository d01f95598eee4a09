"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomically(path: Path, data: bytes | memoryview | str) -> None:
    """Write `data` (text as UTF-8) under `path` in one step.

    A temporary file is synced and renamed, then the folder is synced, so a kill or a full disk
    leaves what stood there before untouched. Raises OSError with the path in it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        with open(temporary, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)


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
