"""The command line, the only package that parses arguments. Each command imports what it needs.

Exit status: 0 for success; 2 for a user error (one line); 1 for a bug (a traceback); 130, 143 or
138 if Ctrl-C, SIGTERM or SIGUSR1 stopped the run after a complete step.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import NoReturn

import typer

# Each registers its commands, which --help lists in this order.
from fastselfie.cli import configs, prepare, train, results, inference  # noqa: F401 # isort: skip
from fastselfie.cli.app import app
from fastselfie.errors import UserError
from fastselfie.system.signals import Interrupted

# Errors of the operating system that the user can fix, and how.
_FIXES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space, or choose another --out"),
    **dict.fromkeys((errno.EROFS, errno.EACCES), "check its permissions"),
    **dict.fromkeys((errno.ENOTDIR, errno.EEXIST, errno.ELOOP), "pass another path"),
    errno.EISDIR: "pass a file name",
    errno.ENAMETOOLONG: "pass a shorter path",
}
_INTERRUPTED = 130  # the exit status of a program that SIGINT stopped


def main() -> None:
    """Run the command line and exit. A user error prints one line on standard error, status 2."""
    # OpenMP reads this when torch loads it, so set it before any command imports torch. A thread
    # that waits by spinning takes its core from the decoder or program that it waits for: with both
    # cores shared, the quickstart's step was four times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Blocks of many sizes, as those of a last batch or another image size, then share memory that
    # would lie in pieces. torch reads it when it first uses a GPU. The user's settings win.
    if not any(name in os.environ for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")):
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    try:
        _check_kernels()
        status = app(prog_name="fastselfie", standalone_mode=False)
    except UserError as error:
        _exit(str(error))
    except OSError as error:
        if error.errno is None or error.errno not in _FIXES:
            raise
        where = f"{error.filename}: " if error.filename else ""
        _exit(f"{where}{os.strerror(error.errno)}: {_FIXES[error.errno]}")
    except Interrupted as signal:
        status = 128 + signal.number
    except (KeyboardInterrupt, typer.Abort):
        status = _INTERRUPTED
    except Exception as error:
        # A usage error. Its class is click's or, in some versions of typer, a vendored click's.
        if not hasattr(error, "format_message"):
            raise
        message = " ".join(error.format_message().split())
        if not message:  # no arguments: typer has printed the help
            sys.exit(2)
        context = getattr(error, "ctx", None)
        program = context.command_path if context is not None else "fastselfie"
        _exit(f"{message.rstrip('.')} (see {program} --help)")  # one line, not typer's box
    if status == _INTERRUPTED:
        typer.echo("interrupted: run the same command to resume", err=True)
    sys.exit(status or 0)


def _check_kernels() -> None:
    if "FASTSELFIE_KERNELS" in os.environ:
        try:
            import fastselfie.kernels.jpeg  # noqa: F401 # the import refuses a wrong name
        except ValueError as error:
            raise UserError(str(error)) from None


def _exit(message: str) -> NoReturn:
    # A file name may contain a newline, or bytes that are not text.
    message = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in message)
    typer.echo(f"error: {message}", err=True)
    sys.exit(2)
