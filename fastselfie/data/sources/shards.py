"""Names of a dataset's parts, and which shards belong to which part."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from fastselfie.errors import UserError


class Named(Protocol):
    """A file: a path, or one on a server."""

    @property
    def name(self) -> str:
        """The last component of its path."""


File = TypeVar("File", bound=Named)

# The names that torchvision, timm and Hugging Face's datasets use. Held-out parts are tried in this
# order.
TRAIN_NAMES = ("train", "training")
USUAL_TEST_NAMES = ("test", "val", "valid", "validation")
TEST_NAMES = (*USUAL_TEST_NAMES, "testing", "dev", "eval", "evaluation")
# Names of the only sub-folder of a held-out part whose images have no labels.
NO_CLASSES = frozenset({"all", "images", "test", "unknown", "unlabeled", "unlabelled"})


def named_as_parts(names: Sequence[str]) -> bool:
    """Return whether most of several names contain a part's name as a word or a word's prefix.

    Examples: seg_train and seg_test, trainA and testA, train2017 and val2017.
    """
    words = [re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name) for name in names]
    parts = [any(_names_part(word.lower()) for word in each) for each in words]
    return len(names) > 1 and 2 * sum(parts) > len(parts)


def _names_part(word: str) -> bool:
    return word.startswith(("train", "test", "val")) or word in TEST_NAMES


def files_of(folder: Path, suffix: str) -> list[Path]:
    """Return the sorted files of a folder whose names end in `suffix`, without hidden ones.

    macOS keeps the metadata of a file beside it as ._NAME.
    """
    return sorted(path for path in folder.glob(f"*{suffix}") if not path.name.startswith("."))


def files_of_part(
    path: Path, suffix: str, part: str, beside_train: bool = False
) -> Sequence[Path] | None:
    """Return the sorted files of one part.

    A file belongs to the part whose name is a word in its name: train-00000-of-00014.parquet,
    imagenet-val-0003.tar. Without such words every file belongs to the part that is asked for.

    Args:
        path: One file, or a folder of files.
        suffix: The suffix of the files.
        part: train, or one of TEST_NAMES.
        beside_train: Whether a dataset without parts is already in use as the training part.

    Returns:
        The files; None if there is no such part.

    Raises:
        UserError: Some file names contain a part and others do not.
    """
    if path.is_file():
        return None if beside_train else [path]
    return select_part(files_of(path, suffix), part, beside_train)


def select_part(files: Sequence[File], part: str, beside_train: bool) -> Sequence[File] | None:
    """Return the files of one part among those of a folder, by their names; see `files_of_part`."""
    parts = parts_of(files)
    if not any(parts):
        return None if beside_train else files
    if not all(parts):
        odd = files[parts.index(None)]
        raise UserError(f"{odd}: its name contains neither train nor test, unlike the other files: "
                        "move it away or rename it")  # fmt: skip
    return [file for file, own in zip(files, parts, strict=True) if own == part] or None


def parts_of(files: Sequence[File]) -> list[str | None]:
    """Return the part that each file's name contains as a word: train, one of TEST_NAMES, None."""
    return [_part_of(file.name) for file in files]


def _part_of(name: str) -> str | None:
    words = re.split(r"[^a-z]+", name.lower())
    if any(name in words for name in TRAIN_NAMES):
        return "train"
    return next((name for name in TEST_NAMES if name in words), None)
