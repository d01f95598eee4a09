"""The page cache of the kernel: drop files from it, and measure how much of them it holds."""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from collections.abc import Sequence
from pathlib import Path


def forget(paths: Sequence[Path]) -> None:
    """Drop files that no process maps from the cache."""
    os.sync()  # dirty pages cannot be dropped
    for _ in range(5):  # the kernel skips pages that are in use at the moment
        for path in paths:
            with open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if not resident(paths):
            return
        time.sleep(0.2)


def resident(paths: Sequence[Path]) -> int:
    """Return how many bytes of the files are in the cache."""
    libc = ctypes.CDLL(None, use_errno=True)
    pages = 0
    for path in paths:
        size = path.stat().st_size
        if not size:
            continue
        held = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
        # ctypes needs a writable map; this one is private, and nothing is written.
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as area:
            start = ctypes.c_char.from_buffer(area)
            failed = libc.mincore(ctypes.c_void_p(ctypes.addressof(start)), size, held)
            del start  # otherwise the map cannot be closed
            if failed:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
        pages += sum(page & 1 for page in held)
    return pages * mmap.PAGESIZE
