"""The public Loader after close, in a fork, in threads, and at the end of a program."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import subprocess
import sys
import threading

import pytest
from conftest import thread_count

from fastselfie import Loader


def test_after_close_there_is_one_clear_line(numbered):
    loader = Loader(numbered, 5, size=32)
    batches = iter(loader)
    next(batches)
    loader.close()
    loader.close()
    for use in (lambda: next(batches), lambda: iter(loader)):
        with pytest.raises(RuntimeError, match="this Loader is closed: make a new one"):
            use()


@pytest.mark.parametrize("end", ["drop", "close", "again"])
def test_no_thread_outlives_an_epoch_left_early(numbered, end):
    next(iter(Loader(numbered, 5, size=32, workers=3)))  # what torch starts once
    gc.collect()
    before = thread_count(), threading.active_count()
    loader = Loader(numbered, 5, size=32, workers=3)
    batches = iter(loader)
    next(batches)
    assert thread_count() > before[0]
    if end == "close":
        loader.close()
    elif end == "again":
        for _ in loader:
            pass
    else:
        del loader, batches  # no collection needed: nothing is in a circle
    assert (thread_count(), threading.active_count()) == before


def test_a_fork_is_told_to_make_its_own(numbered):
    loader = Loader(numbered, 5, size=32)
    batches = iter(loader)
    next(batches)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            next(batches)
        except RuntimeError as error:
            os.write(write, str(error).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert b"belongs to the process that made it" in os.read(read, 1000)
    assert len(list(batches)) == 4


def test_a_program_may_end_in_the_middle_of_an_epoch(numbered):
    made = f"Loader({str(numbered)!r}, 5, size=32)"
    code = f"from fastselfie import Loader; batches = iter({made}); next(batches)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, timeout=100, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_an_epoch_that_another_one_ended_says_so(numbered):
    loader = Loader(numbered, 5, size=32)
    first = iter(loader)
    next(first)
    next(iter(loader))
    with pytest.raises(RuntimeError, match=r"another iter\(\) of this Loader"):
        next(first)


def test_close_from_another_thread_ends_the_epoch(numbered):
    loader = Loader(numbered, 1, size=32)
    batches, seen = iter(loader), []

    def read():
        for _ in range(2):
            try:
                next(batches)
                seen.append("a batch")
            except RuntimeError as error:
                seen.append(str(error))
            closing.set()
            loader_closed.wait(10)

    closing, loader_closed = threading.Event(), threading.Event()
    reader = threading.Thread(target=read)
    reader.start()
    closing.wait(60)
    loader.close()
    loader_closed.set()
    reader.join(60)
    assert not reader.is_alive()
    assert seen == ["a batch", "this Loader is closed: make a new one"]


def test_a_loader_is_not_copied(numbered):
    for copy_of in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError, match="cannot be copied or pickled"):
            copy_of(Loader(numbered, 5, size=32))
