"""What the scripts' command lines share: a mistake is one line and status 2, before the measuring.

from support.arguments import Parser, above_zero, chosen, result_file
"""

from __future__ import annotations

import argparse
from collections.abc import Collection
from pathlib import Path
from typing import NoReturn

from fastselfie.errors import UserError


class Parser(argparse.ArgumentParser):
    """Says a mistake as the rest does, without the usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}: see --help")


def above_zero(options: argparse.Namespace, *names: str) -> None:
    for name in names:
        if getattr(options, name) <= 0:
            raise UserError(f"--{name} {getattr(options, name)}: it must be above 0")


def chosen(option: str, text: str, known: Collection[str]) -> list[str]:
    """The names of a list with commas, each one of `known` and there once."""
    names = text.split(",")
    kind = option.removeprefix("--").removesuffix("s")
    for name in names:  # an unknown one would be measured as something else
        if name not in known:
            raise UserError(f"{option}: unknown {kind} {name!r}: one of {', '.join(known)}")
    if len(set(names)) != len(names):
        raise UserError(f"{option} {text}: a {kind} is named twice")
    return names


def result_file(text: str) -> Path:
    """--json's path, whose folder is made: what takes minutes to measure must have a place."""
    path = Path(text)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--json {text}: {error.strerror}: give another") from error
    if path.is_dir():
        raise UserError(f"--json {text}: is a folder: give a file in it")
    return path
