"""Names of the parts of a set, and which files of a set in many files belong to which part."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from fastselfie.errors import UserError

# As torchvision, timm and Hugging Face's datasets know them. The held-out parts stand in the order
# in which they are tried.
TRAIN_NAMES = ("train", "training")
USUAL_TEST_NAMES = ("test", "val", "valid", "validation")
TEST_NAMES = (*USUAL_TEST_NAMES, "testing", "dev", "eval", "evaluation")
# What the only sub-folder of a held-out part is called where the images have no labels.
NO_CLASSES = frozenset({"all", "images", "test", "unknown", "unlabeled", "unlabelled"})


def named_as_parts(names: Sequence[str]) -> bool:
    """Whether most of several names have a part's name as a word or at a word's beginning.

    So seg_train and seg_test, trainA and testA, train2017 and val2017 are named.
    """
    words = [re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name) for name in names]
    parts = [any(_names_part(word.lower()) for word in each) for each in words]
    return len(names) > 1 and 2 * sum(parts) > len(parts)


def _names_part(word: str) -> bool:
    return word.startswith(("train", "test", "val")) or word in TEST_NAMES


def files_of(folder: Path, suffix: str) -> list[Path]:
    """The files of a folder whose names end in `suffix`, in order of name; no hidden ones.

    macOS keeps a file's metadata beside it under its name, as ._NAME.
    """
    return sorted(path for path in folder.glob(f"*{suffix}") if not path.name.startswith("."))


def files_of_part(
    path: Path, suffix: str, part: str, beside_train: bool = False
) -> Sequence[Path] | None:
    """The files of one part, in order of name; None if there is no such part.

    A file belongs to the part whose name is a word of its own: train-00000-of-00014.parquet,
    imagenet-val-0003.tar. Without such words every file belongs to the part that is asked for,
    unless it already is the training part (beside_train).

    Args:
        path: one file, or a folder of them.
        suffix: what the names of the files end in.
        part: train, or one of TEST_NAMES.
        beside_train: whether the whole of a set without parts is in use as its training part.

    Raises:
        UserError: some files name a part and others do not.
    """
    files = files_of(path, suffix) if path.is_dir() else [path]
    parts = [_part_of(file) for file in files]
    if not any(parts) or path.is_file():
        return None if beside_train else files
    if not all(parts):
        odd = files[parts.index(None)]
        raise UserError(f"{odd}: neither train nor test in its name, as its neighbours have: move "
                        "it away or rename it")  # fmt: skip
    return [file for file, own in zip(files, parts, strict=True) if own == part] or None


def _part_of(file: Path) -> str | None:
    words = re.split(r"[^a-z]+", file.name.lower())
    if any(name in words for name in TRAIN_NAMES):
        return "train"
    return next((name for name in TEST_NAMES if name in words), None)
