"""Calls that wait for a server, in daemon threads.

A command that ends early, by Ctrl-C or an error, does not wait for a request that may take a
minute. It would wait for the threads of concurrent.futures.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

Result = TypeVar("Result")


def start_thread(call: Callable[[], Result]) -> Future[Result]:
    """Call a function in a daemon thread of its own.

    Args:
        call: Takes no arguments.

    Returns:
        What it returns or raises.
    """
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # also one that is no Exception: somebody waits for it
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    return future
