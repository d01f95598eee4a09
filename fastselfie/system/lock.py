"""A folder that one command at a time works in, held by a lock that a kill releases."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from fastselfie.errors import UserError

LOCK = ".lock"

_held: set[Path] = set()


@contextmanager
def exclusive_lock(folder: Path) -> Iterator[None]:
    """Hold `folder`, which is made where it is missing, against other processes.

    Inside another holding by this process it does nothing: a command may call another.

    Raises:
        UserError: another process holds it; the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be made ({error.strerror}): give another --out"
        ) from error
    whole = folder.resolve()
    if whole in _held:
        yield
        return
    with open(whole / LOCK, "a+", encoding="ascii") as file:
        _lock(file, folder, 0)  # all of it: the helpers of a killed command hold their bytes still
        with suppress(OSError):
            fcntl.lockf(file, fcntl.LOCK_UN, 0, 1)
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        _held.add(whole)
        try:
            yield
        finally:
            _held.discard(whole)


@contextmanager
def helping_in(folder: Path, number: int) -> Iterator[None]:
    """Hold `folder` too, as helper `number` of the process that does: it may be killed before.

    Raises:
        UserError: another helper of that number is at work.
    """
    with open(folder / LOCK, "r+", encoding="ascii") as file:
        _lock(file, folder, 1, 1 + number)
        yield


def _lock(file: IO[str], folder: Path, length: int, start: int = 0) -> None:
    """Lock bytes of `file` until it is closed; length 0 is to its end and beyond.

    Not flock: forked decoders would inherit it, and hold it when this process is killed.
    """
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)
    except (BlockingIOError, PermissionError) as error:  # either, by POSIX
        file.seek(0)
        raise UserError(
            f"{folder}: another fastselfie works there, process {file.readline().strip() or '?'}: "
            "wait for it, or use another --out"
        ) from error
    except OSError:  # a file system without locks
        return
