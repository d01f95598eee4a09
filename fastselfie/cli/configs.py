"""The command `configs`: the configs that come with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastselfie.cli.app import app
from fastselfie.cli.output import print_table
from fastselfie.errors import UserError


@app.command()
def configs(
    name: Annotated[str | None, typer.Argument(help="The config to print or copy.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.yaml", help="Copy it to this file.")
    ] = None,
) -> None:
    """List the configs that come with the package, or print or copy one of them.

    `train`, `reproduce` and `profile` accept these names: fastselfie train in224.
    """
    from fastselfie.config.load import shipped_configs

    found = shipped_configs()
    if name is None and out is None:
        texts = {name: path.read_text(encoding="utf-8") for name, path in found.items()}
        print_table([(name, text.splitlines()[0].lstrip("# ")) for name, text in texts.items()])
        return
    if name is None:
        raise UserError(f"--out {out}: name the config to copy, one of {', '.join(found)}")
    if name not in found:
        raise UserError(f"{name}: not a shipped config: choose one of {', '.join(found)}")
    text = found[name].read_text(encoding="utf-8")
    if out is None:
        typer.echo(text, nl=False)
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    with open(out, "x", encoding="utf-8") as file:
        file.write(text)
    typer.echo(f"{out}: copied from {name}. To use it: fastselfie train {out}")
