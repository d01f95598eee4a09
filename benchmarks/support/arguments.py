"""Options of the scripts. A mistake raises UserError before anything is measured."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from pathlib import Path
from typing import NoReturn

from fastselfie.errors import UserError


class Parser(argparse.ArgumentParser):
    """An argument parser that raises UserError instead of printing the usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}: see --help")


def above_zero(options: argparse.Namespace, *names: str) -> None:
    """Raise UserError if one of the named options is not above 0."""
    for name in names:
        if getattr(options, name) <= 0:
            raise UserError(f"--{name} {getattr(options, name)}: it must be above 0")


def chosen(option: str, text: str, known: Collection[str]) -> list[str]:
    """Split a list with commas. Raise UserError for a name not in `known`, or given twice."""
    names = text.split(",")
    kind = option.removeprefix("--").removesuffix("s")
    for name in names:  # an unknown one would be measured as something else
        if name not in known:
            raise UserError(f"{option}: unknown {kind} {name!r}: one of {', '.join(known)}")
    if len(set(names)) != len(names):
        raise UserError(f"{option} {text}: a {kind} is named twice")
    return names


def result_file(text: str) -> Path:
    """Return the path of --json, and make its folder before minutes of measuring."""
    path = Path(text)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--json {text}: {error.strerror}: give another") from error
    if path.is_dir():
        raise UserError(f"--json {text}: is a folder: give a file in it")
    return path
