"""Commands that make .beton files: prepare, join."""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from fastselfie.cli.app import app
from fastselfie.cli.options import Address, AsJson, Engine, EngineName, Part
from fastselfie.cli.output import print_result
from fastselfie.errors import UserError


class Subsampling(str, Enum):
    """The chroma subsampling of the JPEGs that `prepare` writes."""

    keep = "keep"
    half = "420"


class OnError(str, Enum):
    """What `prepare` does with an unreadable image."""

    stop = "raise"
    skip = "skip"


Source = Annotated[
    str | None,
    typer.Argument(
        metavar="SOURCE",
        help="An image folder (one sub-folder per class, or loose images); a folder of CIFAR, "
        "ImageNet 32x32 or IDX files; a WebDataset .tar or Hugging Face .parquet, or a folder "
        "of those, also as a URL (s3://, gs://, https://, hf://datasets/); or a .beton file.",
    ),
]
_OUT = typer.Option(metavar="FILE.beton", help="The file to write.")


@app.command()
def prepare(
    source: Source = None,
    out: Annotated[Path | None, _OUT] = None,
    check: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Check an existing .beton file instead.")
    ] = None,
    part: Annotated[Part, typer.Option(help="Which part, if the source has both.")] = Part.train,
    max_side: Annotated[
        int | None, typer.Option(help="Shrink images whose longer side exceeds this, in pixels.")
    ] = None,
    quality: Annotated[
        int | None,
        typer.Option(help="Re-encode at this quality. Default: JPEGs lossless, others at 95."),
    ] = None,
    subsampling: Annotated[
        Subsampling, typer.Option(help="420: re-encode images that have more chroma.")
    ] = Subsampling.keep,
    apply_orientation: Annotated[
        bool, typer.Option("--apply-orientation", help="Rotate images as EXIF says.")
    ] = False,
    on_error: Annotated[
        OnError, typer.Option(help="skip: leave out unreadable images, list them beside FILE.")
    ] = OnError.stop,
    workers: Annotated[int | None, typer.Option(help="Processes; default: one per core.")] = None,
    engine: Engine = EngineName.local,
    address: Address = None,
    page_size: Annotated[
        int | None, typer.Option(help="Bytes, a power of two; an image must fit in one page.")
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(metavar="K/N", help="Write only shard K of N; `join` merges them."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Convert a dataset to a .beton file, which the fast loaders read.

    JPEGs are transcoded without loss unless an option changes the pixels. If interrupted, run the
    same command to resume.
    """
    from fastselfie.data.conversion import prepare as preparing
    from fastselfie.data.conversion.encode import Recoding

    if check is not None:
        if source is not None or out is not None:
            raise UserError(f"--check {check}: checks one file: remove SOURCE and --out")
        _check_beton(check)
        return
    if source is None or out is None:
        raise UserError("prepare: pass SOURCE and --out FILE.beton, or --check FILE")
    recoding = Recoding(max_side, quality, subsampling.value, apply_orientation)
    options = preparing.Options(
        recoding, part.value, workers, on_error.value, engine=engine.value, address=address
    )
    if page_size is not None:
        options = replace(options, page_size=page_size)
    if shard is not None:
        options = replace(options, shard=_parse_shard(shard))
    print_result(preparing.prepare(source, out, options), as_json)


def _parse_shard(text: str) -> tuple[int, int]:
    shard, slash, shards = text.partition("/")
    if not (slash and shard.isdecimal() and shards.isdecimal()):
        raise UserError(f"--shard {text}: pass K/N, shard K of N, for example 1/4")
    return int(shard), int(shards)


@app.command()
def join(
    parts: Annotated[list[Path], typer.Argument(help="All N files of `prepare --shard K/N`.")],
    out: Annotated[Path, _OUT],
    as_json: AsJson = False,
) -> None:
    """Merge the shards that several machines prepared.

    The file is the same as one machine would have written.
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
        raise UserError(f"{path}: {problems} problems found: copy it or prepare it again")
    typer.echo(f"{path}: no problem found")
