"""Several .beton files that the user names one by one, or by a pattern such as train-*.beton."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from fastselfie.data.sources.shards import parts_of
from fastselfie.errors import UserError


@dataclass(frozen=True)
class FileList:
    """Files that are one dataset.

    Attributes:
        files: In order of name, at least one, each once.
        text: What the user wrote, for messages.
    """

    files: tuple[Path, ...]
    text: str

    def __str__(self) -> str:
        return self.text


def find_place(named: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> Path | FileList:
    """Return what a dataset is read from: a path as it stands, or the files of a list or pattern.

    An initial ~ is the home folder. It stays if it names an unknown user.

    Args:
        named: A path; a pattern with * ? or [ that is no path; or a list of paths.

    Raises:
        UserError: A pattern matches nothing, or a file is no .beton file, named twice, or of
            another part of the dataset than the others.
    """
    if isinstance(named, (str, os.PathLike)):
        if "://" in str(named):
            raise UserError(
                f"{named}: is a URL: convert it with `fastselfie prepare URL --out FILE.beton`, "
                "and pass the file"
            )
        path = Path(os.path.expanduser(named))
        if not glob.has_magic(str(path)) or os.path.lexists(path):
            return path
        found = [Path(file) for file in glob.glob(str(path), recursive=True)]
        if not found:
            raise UserError(f"{path}: no file matches: check the pattern")
        return _file_list(found, str(path))
    paths = [Path(os.path.expanduser(each)) for each in named]
    if not paths:
        raise UserError("the list of .beton files is empty: name at least one")
    more = f", ... ({len(paths)} files)" if len(paths) > 1 else ""
    return _file_list(paths, f"{paths[0]}{more}")


def _file_list(paths: Sequence[Path], text: str) -> FileList:
    files = sorted(paths)
    for file in files:
        if file.suffix != ".beton":
            raise UserError(
                f"{file}: is no .beton file, and a list or pattern names .beton files only: pass "
                "the folder of other files"
            )
    twice = next((a for a, b in pairwise(files) if a == b), None)
    if twice is not None:
        raise UserError(f"{twice}: is in the list twice: name each file once")
    parts = dict(zip(parts_of(files), files, strict=True))
    held_out = [file for part, file in parts.items() if part not in (None, "train")]
    if "train" in parts and held_out:
        raise UserError(
            f"{text}: has training files and {held_out[0]}: name those of each part, as data.train "
            "and data.test"
        )
    return FileList(tuple(files), text)
