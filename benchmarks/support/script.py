"""What every script shares: how it speaks while it measures, and how an error ends it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from fastselfie.errors import UserError
from support.rounds import WorkerError


def say(text: str) -> None:
    """Print a line of progress on standard error."""
    print(text, file=sys.stderr, flush=True)


def run_script(main: Callable[..., object], *arguments: Any) -> None:
    """Call a script's `main`. An error becomes one line.

    The exit status is 2 for what the user can mend, 1 for a worker that failed, 130 for Ctrl-C.
    """
    try:
        main(*arguments)
    except (UserError, WorkerError, OSError) as error:
        say(f"error: {error}")
        raise SystemExit(1 if isinstance(error, WorkerError) and not error.user else 2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
