"""The command line, the only place that parses argv. Each command imports what it needs itself.

Exit status: 0 done, 2 the user's mistake (one line), 1 a fault of ours (a traceback), 130, 143 and
138 left at a whole step after Ctrl-C, SIGTERM and SIGUSR1.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import Any, NoReturn

import typer

from fastselfie.cli import configs, inference, prepare, results, train  # noqa: F401 - each registers its commands
from fastselfie.cli.app import app
from fastselfie.errors import UserError

_ROOM, _RIGHTS = "make room, or choose another --out", "check its permissions"
# What the system refuses and the user can mend.
_WAYS_OUT = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EROFS: _RIGHTS,
    errno.EACCES: _RIGHTS,
    errno.EISDIR: "give a file's name",
    errno.ENOTDIR: "give another path",
    errno.EEXIST: "give another path",
    errno.ENAMETOOLONG: "give a shorter path",
    errno.ELOOP: "give another path",
}
_INTERRUPTED = 130  # the exit status of a program that SIGINT ended


def main() -> None:
    """Run the command line and leave; a user's mistake is one line on standard error, status 2."""
    # Read when torch loads OpenMP, so set before any command imports it. A thread that waits by
    # spinning takes its core from whoever it waits for, a decoder or another program: with both
    # cores shared, the quickstart's step was four times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        status = app(prog_name="fastselfie", standalone_mode=False)
    except UserError as error:
        _leave(str(error))
    except OSError as error:
        if error.errno is None or error.errno not in _WAYS_OUT:
            raise
        where = f"{error.filename}: " if error.filename else ""
        _leave(f"{where}{os.strerror(error.errno)}: {_WAYS_OUT[error.errno]}")
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(_interrupted())
    except Exception as error:
        # A mistake in argv. Typer has it of click or, by its version, of a click of its own.
        if not hasattr(error, "format_message"):
            raise
        _leave_usage(error)
    if status == _INTERRUPTED:  # typer's, in silence, where Ctrl-C reached it first
        _interrupted()
    sys.exit(status or 0)


def _interrupted() -> int:
    typer.echo("interrupted: run the same command to go on", err=True)
    return _INTERRUPTED


def _leave_usage(error: Any) -> NoReturn:
    """One line in place of typer's box; without any argument the help was printed by now."""
    message = " ".join(error.format_message().split())
    if not message:
        sys.exit(2)
    context = getattr(error, "ctx", None)
    program = context.command_path if context is not None else "fastselfie"
    _leave(f"{message.rstrip('.')} (see {program} --help)")


def _leave(message: str) -> NoReturn:
    # The name of a file may hold a line's end, or bytes that are no text.
    message = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in message)
    typer.echo(f"error: {message}", err=True)
    sys.exit(2)
