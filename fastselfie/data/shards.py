"""Sets that are split into many files: which of the files belong to which part."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from fastselfie.errors import UserError

TEST_NAMES = ("test", "val", "valid", "validation")


def files_of_part(
    path: Path, suffix: str, part: str, beside_train: bool = False
) -> Sequence[Path] | None:
    """The files of `part`, train or test, in order of name; None if there is no such part.

    path: one file, or a folder of them. A file belongs to the part whose name is a word of its own:
    train-00000-of-00014.parquet, imagenet-val-0003.tar. Without such words every file belongs to
    the part that is asked for, unless it already is the training part (beside_train).

    Raises:
        UserError: some files name a part and others do not.
    """
    files = sorted(path.glob(f"*{suffix}")) if path.is_dir() else [path]
    parts = [_part_of(file) for file in files]
    if not any(parts) or path.is_file():
        return None if beside_train else files
    if not all(parts):
        odd = files[parts.index(None)]
        raise UserError(f"{odd}: neither train nor test in its name, as its neighbours have: move "
                        "it away or rename it")  # fmt: skip
    for name in ("train",) if part == "train" else TEST_NAMES:
        found = [file for file, own in zip(files, parts, strict=True) if own == name]
        if found:
            return found
    return None


def _part_of(file: Path) -> str | None:
    words = re.split(r"[^a-z]+", file.name.lower())
    return next((name for name in ("train", *TEST_NAMES) if name in words), None)
