"""The lock of a folder: waiting for its holder, and helpers that lock again."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fastselfie.errors import UserError
from fastselfie.system.lock import exclusive_lock, helping_in

HOLDS = (
    "import sys; from pathlib import Path; from fastselfie.system.lock import *\n"
    "with {}(Path(sys.argv[1])): print(flush=True); sys.stdin.read()"
)


def leave(process):
    process.stdin.close()
    process.wait()


@pytest.fixture
def held(tmp_path):
    """Starts another process that holds the lock of `tmp_path` until its input ends."""
    started = []

    def hold(how):
        code = HOLDS.format(how)
        process = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE)  # fmt: skip
        started.append(process)
        assert process.stdout.readline()
        return process

    yield hold
    for process in started:
        leave(process)


def test_a_lock_is_waited_for(tmp_path, held, monkeypatch):
    process = held("exclusive_lock")
    with pytest.raises(UserError, match=f"process {process.pid}"), exclusive_lock(tmp_path):
        pass
    # Its holder leaves at the first pause between two tries.
    monkeypatch.setattr("time.sleep", lambda _: leave(process))
    with exclusive_lock(tmp_path, wait=600):
        assert process.returncode == 0


def test_several_helpers_share_a_folder_that_nobody_else_enters(tmp_path, held):
    with exclusive_lock(tmp_path):
        pass
    process = held("helping_in")
    with helping_in(tmp_path), exclusive_lock(tmp_path):  # as a command that a helper runs
        pass
    with pytest.raises(UserError, match="in use"), exclusive_lock(tmp_path):
        pass
    leave(process)
    with exclusive_lock(tmp_path):
        pass
