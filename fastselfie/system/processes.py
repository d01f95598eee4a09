"""Map a function over tasks in worker processes, with results in order and a clean shutdown."""

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

_TASKS_PER_WORKER = 3  # at most, begun or waiting: bounds the memory


def map_in_order(
    work: Callable[[Task], Result], tasks: Iterable[Task], workers: int
) -> Generator[Result]:
    """Yield work(task) of every task, in order, computed by `workers` processes.

    Workers ignore Ctrl-C, and exit when this process does. They are spawned, not forked: a fork
    would inherit the locks of this process's threads and files.

    Pools of the standard library do not survive a killed worker: multiprocessing.Pool never notices
    it, and concurrent.futures may hang if it dies while others start. Here each worker has a pipe
    of its own, which the system closes.

    Args:
        work: The function, which must be picklable, as are tasks and results.
        tasks: Consumed as needed.
        workers: Number of processes.

    Raises:
        UserError: A worker was killed.
        RuntimeError: `work` raised an exception; the message has its traceback.
    """
    context = multiprocessing.get_context("spawn")
    links: list[Connection[Any, Any]] = []
    processes = []
    resource_tracker.ensure_running()  # else the first start runs it and unblocks Ctrl-C
    try:
        with _uninterrupted():
            for _ in range(workers):
                mine, theirs = context.Pipe()
                links.append(mine)
                process = context.Process(target=_serve, args=(work, theirs), daemon=True)
                process.start()
                processes.append(process)
                theirs.close()  # our copy would keep the pipe open when the worker has ended
        pending: deque[Connection[Any, Any]] = deque()
        for number, task in enumerate(tasks):
            link = links[number % workers]
            link.send(task)
            pending.append(link)
            if len(pending) == _TASKS_PER_WORKER * workers:
                yield _result(pending.popleft())
        while pending:
            yield _result(pending.popleft())
    except (EOFError, ConnectionError) as error:
        raise UserError(
            "a worker process was killed, perhaps for lack of memory: run the same command with "
            "fewer --workers to resume"
        ) from error
    finally:
        for link in links:
            link.close()  # ends its worker
        for process in processes:
            process.join()


def _result(link: Connection[Any, Any]) -> Any:
    result, fault = link.recv()
    if fault is not None:
        raise RuntimeError(f"in a worker process:\n{fault}")
    return result


def _serve(work: Callable[[Any], Any], link: Connection[Any, Any]) -> None:
    """Run the tasks that arrive, in a worker process."""
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
    """Receive tasks in a thread, so that the parent never blocks and its end is noticed."""
    try:
        while True:
            tasks.put(link.recv())
    except (EOFError, OSError):
        os._exit(1)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Defer Ctrl-C to the end of the block; processes started inside have it blocked.

    Otherwise a worker that does not ignore it yet would print a traceback, as would one whose start
    was interrupted. Blocking the signal here is not enough: another thread of this process, for
    example of a numerical library, may receive it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
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
