"""Defer Ctrl-C, SIGTERM and SLURM's SIGUSR1 until the current step is complete.

This module only receives the signals. `save_after_signal` in training/loop.py saves the step.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Interrupted(BaseException):
    """A signal stopped the run, after a complete step.

    Args:
        number: The signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Pending:
    """The signal that has arrived, if any.

    Attributes:
        number: The signal, or None.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._abandons = False

    @contextmanager
    def abandoning(self) -> Iterator[None]:
        """Let a signal, also one that is pending, interrupt the block at once.

        Raises:
            Interrupted: Inside the block, at any point, as KeyboardInterrupt would be.
        """
        self._abandons = True  # before the check below, so that no signal falls between them
        try:
            self.raise_if_signalled()
            yield
        finally:
            self._abandons = False
        self.raise_if_signalled()  # if a destructor swallowed the exception

    def raise_if_signalled(self) -> None:
        """Raise Interrupted if a signal has arrived."""
        if self.number is not None:
            raise Interrupted(self.number)

    def keep(self, number: int) -> None:
        """Record a signal; called by its handler."""
        self.number = number
        if self._abandons:
            self._abandons = False
            raise Interrupted(number)


@contextmanager
def deferred_signals() -> Iterator[Pending]:
    """Record the first of SIGNALS in the yielded object; a second one acts at once.

    Does nothing outside the main thread, where Python cannot handle signals.
    """
    pending = Pending()
    if threading.current_thread() is not threading.main_thread():
        yield pending
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def keep(number: int, _: FrameType | None) -> None:
        restore()
        pending.keep(number)

    for number in SIGNALS:
        signal.signal(number, keep)
    try:
        yield pending
    finally:
        restore()
