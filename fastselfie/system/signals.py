"""Ctrl-C, SIGTERM and SLURM's SIGUSR1, kept until the step in progress is whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Interrupted(BaseException):
    """The run was asked to leave, and left at a whole step. signal: which one asked."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Pending:
    """The signal that asked the run to leave, or None."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._abandons = False

    @contextmanager
    def abandoning(self) -> Iterator[None]:
        """What is inside need not become whole: a signal, also one from before, ends it at once.

        Raises:
            Interrupted: in the middle of what is inside, as Ctrl-C would.
        """
        self._abandons = True  # before the look at what is pending: none may fall between the two
        try:
            self.leave()
            yield
        finally:
            self._abandons = False
        self.leave()  # an exception that a destructor swallowed

    def leave(self) -> None:
        """Raise Interrupted where a signal asked for it."""
        if self.number is not None:
            raise Interrupted(self.number)

    def keep(self, number: int) -> None:
        """Take note of a signal, as its handler."""
        self.number = number
        if self._abandons:
            self._abandons = False
            raise Interrupted(number)


@contextmanager
def deferred_signals() -> Iterator[Pending]:
    """The first of SIGNALS is kept in what this yields; a second one acts at once.

    Outside the main thread, where Python takes no signals, nothing is kept.
    """
    pending = Pending()
    if threading.current_thread() is not threading.main_thread():
        yield pending
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def restore() -> None:
        for number in SIGNALS:
            signal.signal(number, before[number])

    def keep(number: int, frame: FrameType | None) -> None:
        del frame
        restore()
        pending.keep(number)

    for number in SIGNALS:
        signal.signal(number, keep)
    try:
        yield pending
    finally:
        restore()
