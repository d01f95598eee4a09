"""The typer application that the commands register with."""

from __future__ import annotations

from typing import Annotated

import typer

from fastselfie import __version__

app = typer.Typer(
    name="fastselfie",
    help="Train, evaluate and export Selfie networks (arXiv 1906.02940).",
    no_args_is_help=True,
    rich_markup_mode="markdown",  # reflows paragraphs
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    del version
