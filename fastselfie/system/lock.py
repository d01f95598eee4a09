"""A lock on a folder, so that one command at a time works in it. A kill releases it."""

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
    """Lock `folder`, and create it if it is missing.

    The lock is reentrant in this process, so a command may call another.

    Raises:
        UserError: Another process holds the lock, or the folder cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be created ({error.strerror}): choose another --out"
        ) from error
    whole = folder.resolve()
    if whole in _held:
        yield
        return
    with open(whole / LOCK, "a+", encoding="ascii") as file:
        _lock(file, folder, 0)  # all bytes: helpers of a killed command may still hold theirs
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
    """Lock `folder` as a helper process of the command that holds it.

    If the command is killed, its helpers keep the folder locked until they end.

    Args:
        folder: The locked folder.
        number: A number from 0, unique among the helpers.

    Raises:
        UserError: Another helper holds this number.
    """
    with open(folder / LOCK, "r+", encoding="ascii") as file:
        _lock(file, folder, 1, 1 + number)
        yield


def _lock(file: IO[str], folder: Path, length: int, start: int = 0) -> None:
    """Lock `length` bytes of `file` (0: all) until it is closed.

    Not with flock: forked decoders would inherit that lock and keep it after a kill.
    """
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)
    except (BlockingIOError, PermissionError) as error:  # POSIX allows both
        file.seek(0)
        raise UserError(
            f"{folder}: in use by another fastselfie, process {file.readline().strip() or '?'}: "
            "wait for it, or choose another --out"
        ) from error
    except OSError:  # the file system does not support locks
        return
