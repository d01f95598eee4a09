"""Calls that wait for a server, in daemon threads.

A command that ends early, by Ctrl-C or an error, does not wait for a request that may take a
minute. It would wait for the threads of concurrent.futures.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import Any


class DaemonThread:
    """A daemon thread that makes one call after another."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = SimpleQueue()
        Thread(target=self._run, daemon=True).start()

    def submit(self, call: Callable[[], Any]) -> Future[Any]:
        """Return the future result of a function without arguments."""
        future: Future[Any] = Future()
        self._calls.put((call, future))
        return future

    def end(self) -> None:
        """End the thread after the calls that it has."""
        self._calls.put(None)

    def _run(self) -> None:
        while (task := self._calls.get()) is not None:
            call, future = task
            try:
                future.set_result(call())
            except BaseException as error:  # also one that is no Exception: somebody waits for it
                future.set_exception(error)
            del task, call, future  # which hold the result
