"""A function over many tasks in worker processes, results in order, and an end that is one."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from fastselfie.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")

_AHEAD = 3  # tasks a worker that are begun or waiting: bounds the memory


def map_in_order(
    work: Callable[[Task], Result], tasks: Iterable[Task], workers: int
) -> Generator[Result]:
    """Yield work(task) of every task, in order, done in `workers` processes.

    `work`, tasks and results travel pickled; tasks are drawn as they are needed. Workers ignore
    Ctrl-C, and end with this process however it ends. Spawned, not forked: a fork would inherit
    the locks of this process's threads and of its files.

    Not a pool of the standard library's: of a killed worker multiprocessing's never hears, and
    concurrent.futures' waits for ever where it dies while others start. Here each has a pipe of
    its own, which the system closes.

    Raises:
        UserError: a worker was killed.
    """
    context = multiprocessing.get_context("spawn")
    links: list[Connection[Any, Any]] = []
    processes = []
    resource_tracker.ensure_running()  # or the first start does, and unblocks Ctrl-C after it
    try:
        with _uninterrupted():
            for _ in range(workers):
                mine, theirs = context.Pipe()
                links.append(mine)
                process = context.Process(target=_serve, args=(work, theirs), daemon=True)
                process.start()
                processes.append(process)
                theirs.close()  # a copy of ours would keep the pipe open after the worker's end
        pending: deque[Connection[Any, Any]] = deque()
        for number, task in enumerate(tasks):
            link = links[number % workers]
            link.send(task)
            pending.append(link)
            if len(pending) == _AHEAD * workers:
                yield _result(pending.popleft())
        while pending:
            yield _result(pending.popleft())
    except (EOFError, ConnectionError) as error:
        raise UserError(
            "a worker process was killed, perhaps for lack of memory: run the same command to go "
            "on, with fewer --workers"
        ) from error
    finally:
        for link in links:
            link.close()  # which ends its worker
        for process in processes:
            process.join()


def _result(link: Connection[Any, Any]) -> Any:
    result, fault = link.recv()
    if fault is not None:
        raise RuntimeError(f"in a worker process:\n{fault}")
    return result


def _serve(work: Callable[[Any], Any], link: Connection[Any, Any]) -> None:
    """A worker's whole life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # only the parent answers Ctrl-C
    tasks: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(link, tasks), daemon=True).start()
    while True:
        task = tasks.get()
        try:
            answer: tuple[Any, str | None] = (work(task), None)
        except Exception:
            answer = None, traceback.format_exc()
        try:
            link.send(answer)
        except OSError:
            os._exit(1)


def _receive(link: Connection[Any, Any], tasks: queue.SimpleQueue[Any]) -> None:
    """Beside the work: the parent never waits to hand a task over, and its end is noticed."""
    try:
        while True:
            tasks.put(link.recv())
    except (EOFError, OSError):
        os._exit(1)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C takes effect at the end; processes started inside have it blocked.

    Otherwise one that does not ignore it yet prints a traceback, on its own or because this
    process left in the middle of starting it. Blocking alone would not do: another thread, of a
    numerical library, may receive the signal for this one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are not this thread's
        return
    seen: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: seen.append(number))
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        signal.signal(signal.SIGINT, before)
    if seen:
        raise KeyboardInterrupt
