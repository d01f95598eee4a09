"""What a person watches in the terminal: lines on standard error."""

from __future__ import annotations

import functools

from rich.console import Console
from rich.markup import escape

console = Console(stderr=True, highlight=False)


def say(text: str) -> None:
    """A line for the person who watches, as it is: in a terminal wrapped at words, else whole."""
    console.print(escape(text), soft_wrap=not console.is_terminal)


@functools.cache
def say_once(text: str) -> None:
    """Print a line, however often a set is opened."""
    say(text)
