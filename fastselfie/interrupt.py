"""Ctrl-C and SIGTERM, kept until the step in progress is whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(BaseException):
    """The run was asked to leave, and left at a whole step. signal: which one asked."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Pending:
    """The signal that asked the run to leave, or None."""

    def __init__(self) -> None:
        self.number: int | None = None


@contextmanager
def deferred_signals() -> Iterator[Pending]:
    """The first SIGINT or SIGTERM is kept in what this yields; a second one acts at once.

    Outside the main thread, where Python takes no signals, nothing is kept.
    """
    pending = Pending()
    if threading.current_thread() is not threading.main_thread():
        yield pending
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}

    def keep(number: int, frame: FrameType | None) -> None:
        del frame
        pending.number = number
        for each in numbers:
            signal.signal(each, before[each])

    for number in numbers:
        signal.signal(number, keep)
    try:
        yield pending
    finally:
        for number in numbers:
            signal.signal(number, before[number])
