"""Worker processes: results, faults, and how they end."""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest
from helpers.work import save_at_signal, square

from fastselfie.errors import UserError
from fastselfie.system.processes import map_in_order, wait_for_results, worker_pool


def started(path):
    for _ in range(6000):
        if path.with_suffix(".started").exists():
            return
        time.sleep(0.01)
    raise AssertionError("the worker did not start")


def test_results_come_in_the_order_of_the_tasks():
    assert list(map_in_order(partial(map, square), range(20), 2)) == [n**2 for n in range(20)]


@pytest.mark.parametrize(
    ("task", "error", "message"),
    [
        ("mistake", UserError, "^a mistake$"),
        ("text", RuntimeError, r"in a worker process:\nTraceback(.|\n)*TypeError"),
        ("kill", UserError, r"a worker process was killed \(status -9\).*fewer --workers"),
    ],
)
def test_a_fault_in_a_worker_is_raised_here(task, error, message):
    results = map_in_order(partial(map, square), [3, task, 4, 5, 6], 1)
    assert next(results) == 9
    with pytest.raises(error, match=message):
        next(results)


def test_on_an_error_the_workers_save_before_the_pool_ends(tmp_path):
    path = tmp_path / "state"
    pool = worker_pool([partial(save_at_signal, path)], "--jobs")
    (worker,) = pool.__enter__()
    worker.send(7)
    started(path)
    error = UserError("elsewhere")
    assert not pool.__exit__(UserError, error, None)
    assert path.read_text() == f"saved 7 at {int(signal.SIGTERM)}"
    assert worker.process.exitcode == 0


def test_a_worker_that_leaves_at_a_signal_has_no_result(tmp_path):
    path = tmp_path / "state"
    works = [partial(save_at_signal, path), partial(map, square)]
    with worker_pool(works, "--jobs") as (leaving, other):
        leaving.send(1)
        started(path)
        os.kill(leaving.process.pid, signal.SIGTERM)
        assert wait_for_results([leaving, other]) == [leaving]
        with pytest.raises(UserError, match=r"killed \(status 0\).*fewer --jobs"):
            leaving.receive()
        other.send(3)
        assert other.receive() == 9
    assert other.process.exitcode == 0


def test_ctrl_c_while_workers_start_takes_effect_and_leaves_none():
    pool = worker_pool(_interrupting([partial(map, square)] * 2), "--jobs")
    with pytest.raises(KeyboardInterrupt):
        pool.__enter__()
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children]
    assert not any(b"spawn_main" in command for command in commands)


def _interrupting(works):
    for work in works:
        os.kill(os.getpid(), signal.SIGINT)
        yield work
