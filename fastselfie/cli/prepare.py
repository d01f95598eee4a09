"""Commands that make dataset files: prepare, join."""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from fastselfie.cli.app import app
from fastselfie.cli.output import AsJson, print_result
from fastselfie.errors import UserError


class Subsampling(str, Enum):
    """What `prepare` does with the chroma of JPEGs."""

    keep = "keep"
    half = "420"


class OnError(str, Enum):
    """What `prepare` does with an image that cannot be read."""

    stop = "raise"
    skip = "skip"


class Part(str, Enum):
    """Which part of a set `prepare` takes."""

    train = "train"
    test = "test"


@app.command()
def prepare(
    source: Annotated[
        Path | None,
        typer.Argument(
            metavar="[SOURCE]",
            help="Image folder (sub-folders are classes, or none), CIFAR, ImageNet 32x32 or IDX "
            "folder, WebDataset .tar, Hugging Face .parquet (or a folder of those), or a .beton.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.beton", help="The file to make.")
    ] = None,
    check: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Verify a .beton file instead.")
    ] = None,
    part: Annotated[Part, typer.Option(help="Of a source that has both.")] = Part.train,
    max_side: Annotated[
        int | None, typer.Option(help="Pixels; larger images are made smaller.")
    ] = None,
    quality: Annotated[
        int | None,
        typer.Option(help="Encode every image anew. Default: keep JPEGs without loss, 95 else."),
    ] = None,
    subsampling: Annotated[
        Subsampling, typer.Option(help="420: encode images with more chroma anew.")
    ] = Subsampling.keep,
    apply_orientation: Annotated[
        bool, typer.Option("--apply-orientation", help="Turn images as EXIF says.")
    ] = False,
    on_error: Annotated[
        OnError, typer.Option(help="skip: leave unreadable images out, list them beside the file.")
    ] = OnError.stop,
    workers: Annotated[int | None, typer.Option(help="Processes; default one a core.")] = None,
    page_size: Annotated[
        int | None, typer.Option(help="Bytes, a power of two; the largest image that fits.")
    ] = None,
    shard: Annotated[
        str | None, typer.Option(metavar="K/N", help="Only the K-th of N parts; then `join`.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Turn a set of images into one .beton file, which the fast loaders read; goes on by itself.

    JPEGs keep every coefficient unless an option asks for another size or quality. In a pipe, or
    with --json, the last line on standard output is JSON.
    """
    from fastselfie.data.conversion import prepare as preparing
    from fastselfie.data.conversion.encode import Recoding

    if check is not None:
        if source is not None or out is not None:
            raise UserError(f"--check {check}: verifies one file, leave out SOURCE and --out")
        _check_beton(check)
        return
    if source is None or out is None:
        raise UserError("prepare: give SOURCE and --out FILE.beton, or --check FILE")
    recoding = Recoding(max_side, quality, subsampling.value, apply_orientation)
    options = preparing.Options(recoding, part.value, workers, on_error.value)
    if page_size is not None:
        options = replace(options, page_size=page_size)
    if shard is not None:
        options = replace(options, shard=_parse_shard(shard))
    print_result(preparing.prepare(source, out, options), as_json)


def _parse_shard(text: str) -> tuple[int, int]:
    shard, slash, shards = text.partition("/")
    if not (slash and shard.isdecimal() and shards.isdecimal()):
        raise UserError(f"--shard {text}: give K/N, the K-th of N parts")
    return int(shard), int(shards)


@app.command()
def join(
    parts: Annotated[list[Path], typer.Argument(help="All files of `prepare --shard K/N`.")],
    out: Annotated[Path, typer.Option(metavar="FILE.beton", help="The file to make.")],
    as_json: AsJson = False,
) -> None:
    """Join the parts that several machines prepared: the file that one would have made.

    In a pipe, or with --json, the last line on standard output is JSON.
    """
    from fastselfie.data.conversion.merge import merge_shards

    print_result(merge_shards(parts, out), as_json)


def _check_beton(path: Path) -> None:
    from fastselfie.data.conversion.prepare import check

    problems = 0
    for line in check(path):
        typer.echo(line)
        problems += 1
    if problems:
        raise UserError(f"{path}: {problems} problems found: copy or prepare it again")
    typer.echo(f"{path}: no problem found")
