"""Arguments and options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class Part(str, Enum):
    """A part of a dataset."""

    train = "train"
    test = "test"


class EngineName(str, Enum):
    """What runs the tasks of a command."""

    local = "local"
    ray = "ray"


AsJson = Annotated[
    bool,
    typer.Option("--json", help="Print only JSON. In a pipe, the last line is JSON anyway."),
]
ConfigFile = Annotated[
    str,
    typer.Argument(help="A YAML file, or a name from `fastselfie configs`, for example in224."),
]
Engine = Annotated[
    EngineName,
    typer.Option(help="local: this machine; ray: the nodes of a Ray cluster (extra `ray`)."),
]
Address = Annotated[
    str | None,
    typer.Option(
        metavar="auto|HOST",
        help="With --engine ray: join this cluster; default: start one on this machine.",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Override config keys, for example pretrain.lr=0.2."),
]
RunFolder = Annotated[Path, typer.Argument(help="A run's folder, for example runs/quickstart.")]


def checked_by(parse: Callable[[str], object]) -> Callable[[str | None], str | None]:
    """A callback of an option: a value that `parse` refuses by ValueError is a usage error."""

    def check(value: str | None) -> str | None:
        try:
            if value is not None:
                parse(value)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
        return value

    return check
