"""Messages for the user, on standard error."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape

console = Console(stderr=True, highlight=False)


def say(text: str) -> None:
    """Print one line, without markup; only a terminal wraps it."""
    console.print(escape(text), soft_wrap=not console.is_terminal)


@functools.cache
def say_once(text: str) -> None:
    """Print one line once per process, for messages that every opening of a dataset repeats."""
    say(text)


@contextmanager
def messages(shown: bool) -> Iterator[None]:
    """Show or drop all messages inside the block; the innermost block decides."""
    before, console.quiet = console.quiet, not shown
    try:
        yield
    finally:
        console.quiet = before
