"""A lock on a folder, so that one command at a time works in it. A kill releases it."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from fastselfie.errors import UserError

LOCK = ".lock"

_POLL = 0.2  # seconds between tries

_held: set[Path] = set()


@contextmanager
def exclusive_lock(folder: Path, wait: float = 0.0) -> Iterator[None]:
    """Lock `folder`, and create it if it is missing.

    The lock is reentrant in this process, so a command may call another.

    Args:
        folder: The folder.
        wait: Seconds to wait for another process that holds the lock.

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
        # All bytes: helpers of a killed command may still hold one.
        _lock(file, folder, fcntl.LOCK_EX, 0, 0, wait)
        with suppress(OSError):
            fcntl.lockf(file, fcntl.LOCK_UN, 0, 1)
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        with _holding(whole):
            yield


@contextmanager
def helping_in(folder: Path) -> Iterator[None]:
    """Lock `folder` as a helper process of the command that holds it.

    If the command is killed, its helpers keep the folder locked until they end. A helper may call
    what locks the folder itself.

    Raises:
        UserError: A command that this process does not help holds the folder.
    """
    with open(folder / LOCK, "r+", encoding="ascii") as file:
        _lock(file, folder, fcntl.LOCK_SH, 1, 1, 0.0)
        with _holding(folder.resolve()):
            yield


@contextmanager
def _holding(folder: Path) -> Iterator[None]:
    _held.add(folder)
    try:
        yield
    finally:
        _held.discard(folder)


def _lock(file: IO[str], folder: Path, how: int, length: int, start: int, wait: float) -> None:
    """Lock `length` bytes of `file` (0: all) until it is closed.

    Not with flock: forked decoders would inherit that lock and keep it after a kill.
    """
    deadline = time.monotonic() + wait
    try:
        while True:
            try:
                fcntl.lockf(file, how | fcntl.LOCK_NB, length, start)
                return
            except (BlockingIOError, PermissionError):  # POSIX allows both
                if time.monotonic() >= deadline:
                    raise
            time.sleep(_POLL)
    except (BlockingIOError, PermissionError) as error:
        file.seek(0)
        raise UserError(
            f"{folder}: in use by another fastselfie, process {file.readline().strip() or '?'}: "
            "wait for it, or choose another --out"
        ) from error
    except OSError:  # the file system does not support locks
        return
