"""What test_processes.py gives its worker processes to do: a module that they can import."""

from __future__ import annotations

import os
import signal
import time

from fastselfie.errors import UserError
from fastselfie.system.signals import Interrupted, deferred_signals


def square(task):
    if task == "mistake":
        raise UserError("a mistake")
    if task == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    return task**2


def save_at_signal(path, tasks):
    """Work until a signal comes, then save, as training does."""
    for task in tasks:
        with deferred_signals() as pending:
            path.with_suffix(".started").touch()
            while pending.number is None:
                time.sleep(0.01)
        path.write_text(f"saved {task} at {pending.number}")
        raise Interrupted(pending.number)
    yield
