"""Worker processes: Ctrl-C reaches only their parent, and they end when it ends."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from fastselfie.errors import UserError
from fastselfie.system.signals import Interrupted

Task = TypeVar("Task")
Result = TypeVar("Result")
Work = Callable[[Iterator[Any]], Iterable[Any]]

_AHEAD = 3  # unfinished tasks per worker: bounds the memory


@dataclass(eq=False)
class Worker:
    """A worker process, and the connection for its tasks and results."""

    process: BaseProcess
    connection: Connection[Any, Any]
    _option: str

    def send(self, task: Any) -> None:
        """Send the worker a task; None ends it after the tasks that it has."""
        with suppress(ConnectionError):  # it was killed: `receive` will say so
            self.connection.send(task)

    def receive(self) -> Any:
        """Wait for the next result and return it.

        Raises:
            UserError: The worker was killed, or its work raised UserError.
            OSError: The work raised it.
            RuntimeError: The work raised something else; the message holds its traceback.
        """
        try:
            result = self.connection.recv()
        except (EOFError, ConnectionError) as error:
            self.process.join()
            raise UserError(
                f"a worker process was killed (status {self.process.exitcode}), perhaps for lack "
                f"of memory: run the same command to resume, with fewer {self._option}"
            ) from error
        if isinstance(result, Exception):
            raise result
        return result


def wait_for_results(workers: Iterable[Worker]) -> list[Worker]:
    """Wait until at least one worker has a result or was killed; return all that have."""
    by_connection: dict[Any, Worker] = {worker.connection: worker for worker in workers}
    return [by_connection[connection] for connection in wait(list(by_connection))]


@contextmanager
def worker_pool(works: Sequence[Work], option: str) -> Iterator[list[Worker]]:
    """Start one worker process for each of `works`; end them all on exit.

    On a normal exit each worker ends after its tasks. On an error each gets SIGTERM. Either way
    the pool waits until all have ended; an exception during that wait kills them.

    Workers are spawned: a fork would inherit the locks of this process's threads and files, and
    the state of CUDA and OpenMP. A pool of the standard library does not do: multiprocessing's
    never notices a killed worker, and concurrent.futures' hangs if one dies while others start.
    Here the system closes the connection of a killed worker.

    Args:
        works: Called in the workers, with an iterator over the tasks; each yields the results in
            the order of its tasks. Sent pickled, as tasks and results are.
        option: The command-line option for the number of workers, for an error message.
    """
    context = multiprocessing.get_context("spawn")
    workers: list[Worker] = []
    resource_tracker.ensure_running()  # otherwise the first start does it, and unblocks Ctrl-C
    try:
        with _sigint_blocked():
            for work in works:
                ours, theirs = context.Pipe()
                process = context.Process(target=_worker_main, args=(work, theirs))
                process.start()
                theirs.close()  # a copy here would keep the connection open after the worker's end
                workers.append(Worker(process, ours, option))
        yield list(workers)
        for worker in workers:
            worker.send(None)
    except BaseException:
        for worker in workers:
            worker.process.terminate()
        raise
    finally:
        try:
            for worker in workers:
                worker.process.join()
        except BaseException:  # a second Ctrl-C
            for worker in workers:
                worker.process.kill()
            raise


def map_in_order(
    work: Callable[[Iterator[Task]], Iterable[Result]],
    tasks: Iterable[Task],
    workers: int,
    results: Callable[[Task], int] = lambda _: 1,
) -> Generator[Result]:
    """Yield the results of all tasks, in order, computed in worker processes.

    Args:
        work: Takes an iterator over tasks, and yields the results of each in order. Sent to the
            workers pickled.
        tasks: Drawn only as they are needed, and sent pickled.
        workers: Number of processes.
        results: Returns how many results a task has.

    Raises:
        UserError: A worker was killed.
    """
    with worker_pool([work] * workers, "--workers") as pool:
        pending: deque[tuple[Worker, int]] = deque()
        for number, task in enumerate(tasks):
            worker = pool[number % workers]
            worker.send(task)
            pending.append((worker, results(task)))
            if len(pending) == _AHEAD * workers:
                yield from _receive(*pending.popleft())
        while pending:
            yield from _receive(*pending.popleft())


def _receive(worker: Worker, count: int) -> Iterator[Any]:
    for _ in range(count):
        yield worker.receive()


def _worker_main(work: Work, connection: Connection[Any, Any]) -> None:
    """Run `work` in a worker process, until the tasks end or it raises."""
    tasks: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_receive_tasks, args=(connection, tasks), daemon=True).start()
    try:
        for result in work(iter(tasks.get, None)):
            connection.send(result)
    except Interrupted:
        return  # the parent reads it from the end of the connection
    except Exception as error:
        if not isinstance(error, UserError | OSError):
            error = RuntimeError(f"in a worker process:\n{traceback.format_exc()}")
        with suppress(OSError):  # the parent has ended
            connection.send(error)


def _receive_tasks(connection: Connection[Any, Any], tasks: queue.SimpleQueue[Any]) -> None:
    """Queue tasks, in a thread: the parent never waits to send one, and its end is noticed."""
    try:
        while (task := connection.recv()) is not None:
            tasks.put(task)
        tasks.put(None)
    except (EOFError, OSError):
        os.kill(os.getpid(), signal.SIGTERM)  # as the parent does on an error


@contextmanager
def _sigint_blocked() -> Iterator[None]:
    """Delay Ctrl-C to the end; processes started inside have it blocked for life.

    Without this a worker prints a traceback at Ctrl-C, or this process leaves in the middle of
    starting one. Blocking alone is not enough: another thread, of a numerical library, may
    receive the signal for this one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set a handler
        return
    seen: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _: seen.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
    if seen:
        signal.raise_signal(signal.SIGINT)
