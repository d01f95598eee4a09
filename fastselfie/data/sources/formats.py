"""Finds the dataset at a path: which format it has, and where its parts are."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from fastselfie.data.sources import cifar, idx, imagenet32, parquet, webdataset
from fastselfie.data.sources.base import UNLABELLED, Source, relabelled
from fastselfie.data.sources.beton import holds_beton_files, open_as_one, open_beton
from fastselfie.data.sources.file_list import FileList
from fastselfie.data.sources.folder import (
    files_below,
    holds_images,
    is_image,
    open_image_folder,
    subfolders,
    unexpected_files,
)
from fastselfie.data.sources.ignored_files import describe_ignored
from fastselfie.data.sources.part_folders import (
    find_part_folders,
    refuse_nested_parts,
    report_beside_parts,
)
from fastselfie.data.sources.shards import NO_CLASSES, TEST_NAMES, files_of
from fastselfie.data.sources.unsupported import (
    are_known_archives,
    explain,
    find_parts_inside,
    refuse_imagenet_archives,
)
from fastselfie.errors import UserError
from fastselfie.system.console import say_once


@dataclass(frozen=True)
class Format:
    """A dataset format.

    Attributes:
        name: For messages.
        matches: Takes a path; returns whether the dataset there has this format.
        open: Takes the path, the part (train, or one of TEST_NAMES), and `beside_train`: whether
            a dataset without parts is already in use as the training part. Returns None if there
            is no such part.
        suffix: The suffix of its shards; empty for a format without shards.
    """

    name: str
    matches: Callable[[Path], bool]
    open: Callable[[Path, str, bool], Source | None]
    suffix: str = ""


@dataclass(frozen=True)
class Part:
    """One part of a dataset.

    Attributes:
        source: Its images.
        format: Name of the dataset's format.
        name: Name of the part, for example val; empty for a dataset without parts.
        rejected: Names of the parts that were tried before this one and have no labels of the
            training classes.
    """

    source: Source
    format: str
    name: str = ""
    rejected: Sequence[str] = ()


@dataclass(frozen=True)
class DatasetLocation:
    """Where a dataset is.

    Attributes:
        path: The file or folder.
        format: None for an image folder, with or without a folder for each part.
        part_folders: The folder of each part, by the part's name; empty without such folders.
        title: What messages call it, if not by its path.
    """

    path: Path
    format: Format | None
    part_folders: dict[str, Path]
    title: str = ""

    def __str__(self) -> str:
        return self.title or str(self.path)

    def open(self, name: str, beside_train: bool) -> Part | None:
        """Open the part of exactly this name (train, or one of TEST_NAMES); see `Format.open`."""
        if self.format is not None:
            source = self.format.open(self.path, name, beside_train)
            return None if source is None else Part(source, self.format.name, name)
        if name in self.part_folders:
            return self._open_part_folder(name)
        if beside_train or (name != "train" and self.part_folders):
            return None
        own = {folder.name for folder in self.part_folders.values()}
        if name == "train" and own and not self._has_training_images(own):
            return None
        source = open_image_folder(self.path, name, skip=own)
        # The class may come from a table, without a folder of its own.
        if len(source.classes) == 1 and (self.path / source.classes[0]).is_dir():
            inner = find_parts_inside(self.path / source.classes[0])
            if inner is not None:
                raise UserError(
                    f"{self.path}: all its images would be of one class, '{source.classes[0]}': "
                    f"pass {inner}, which holds the parts of a dataset"
                )
        return Part(source, IMAGE_FOLDER.name)

    def _open_part_folder(self, name: str) -> Part | None:
        inner = find_dataset(self.part_folders[name], is_part=True)
        if name == "train" and inner.format is None:
            refuse_nested_parts(inner.path)
        format_ = inner.format or IMAGE_FOLDER
        names = ("train",) if name == "train" else (name, *TEST_NAMES)
        sources = (format_.open(inner.path, each, False) for each in names)
        source = next((each for each in sources if each is not None), None)
        if source is None:
            return None
        if name != "train" and NO_CLASSES.issuperset(n.lower() for n in source.classes):
            # Keras expects images without labels in one folder: test/unknown/*.jpg.
            source = relabelled(source, np.zeros_like(source.labels), UNLABELLED)
        return Part(source, format_.name, name)

    def _has_training_images(self, held_out: set[str]) -> bool:
        """Return whether there are images outside of the held-out folders, which are not train."""
        classes = (self.path / name for name in subfolders(self.path) if name not in held_out)
        return any(map(holds_images, classes)) or any(map(is_image, unexpected_files(self.path)))


def find_dataset(path: Path | FileList, is_part: bool = False) -> DatasetLocation:
    """Find the dataset at `path`.

    Args:
        path: A file or folder, or several .beton files, which have no parts.
        is_part: Whether `path` is a part of another dataset. All its folders are then classes,
            whatever their names.

    Raises:
        UserError: Nothing is there, or no dataset.
    """
    if isinstance(path, FileList):
        files = path.files
        opened = Format(
            _BETON, lambda _: True, lambda _, part, beside: None if beside else open_as_one(files)
        )
        return DatasetLocation(files[0].parent, opened, {})
    _require_path(path)
    format_ = _format_of(path)
    if format_ is not None:
        _check_ambiguity(path, format_)
        return DatasetLocation(path, format_, {})
    if not path.is_dir():
        raise UserError(f"{path}: {explain(path)}")
    folders = {} if is_part else find_part_folders(path)
    if folders or holds_images(path):
        if folders:
            report_beside_parts(path, folders)
        return DatasetLocation(path, None, folders)
    inside = _datasets_inside(path)
    if len(inside) == 1:
        if inside[0].format is not None:
            _check_ambiguity(inside[0].path, inside[0].format)
        return inside[0]
    if inside:
        places = ", ".join(str(found.path.relative_to(path)) for found in inside)
        raise UserError(f"{path}: holds {len(inside)} datasets: pass one of {places}")
    reason = explain(path)
    if reason:
        raise UserError(f"{path}: no images: {reason}")
    return DatasetLocation(path, None, {})


def _require_path(path: Path) -> None:
    """Raise UserError if there is neither a file nor a folder, or a folder called *.beton."""
    try:
        there = path.exists()
    except OSError:  # the name is too long, or a folder above is not accessible
        there = False
    if not there:
        raise UserError(f"{path}: no such file or folder")
    if not path.is_file() and not path.is_dir():
        raise UserError(f"{path}: neither a file nor a folder: pass one of these")
    if path.is_dir() and path.suffix.lower() == ".beton":
        raise UserError(
            f"{path}: is a folder, but .beton is the suffix of a file: rename the folder"
        )


def _check_ambiguity(path: Path, format_: Format) -> None:
    """Report the images and shards in a folder of `format_` that are not read.

    Raises:
        UserError: There are more loose images than shards, so either may be the dataset.
    """
    if not path.is_dir():
        return
    shards = files_of(path, format_.suffix) if format_.suffix else []
    read = path if shards else path / "data"
    unread = [
        file
        for file in files_below(path)
        if is_image(os.path.basename(file))
        or (format_.suffix and file.endswith(format_.suffix) and Path(file).parent != read)
    ]
    loose = [file for file in unread if Path(file).parent == path]
    if shards and len(loose) > len(shards):
        raise UserError(
            f"{path}: either its {len(loose)} images ({os.path.basename(loose[0])}) or its "
            f"{len(shards)} {format_.suffix} files ({shards[0].name}) may be the dataset: move the "
            "others away"
        )
    if ignored := describe_ignored([os.path.relpath(file, path) for file in unread]):
        say_once(f"{path}: {ignored}")


def _datasets_inside(path: Path, depth: int = 2) -> list[DatasetLocation]:
    """Return the datasets in sub-folders, to `depth`: torchvision keeps MNIST in MNIST/raw."""
    found: list[DatasetLocation] = []
    for folder in (path / name for name in subfolders(path)):
        format_ = _format_of(folder)
        if format_ is not None:
            found.append(DatasetLocation(folder, format_, {}))
        elif depth > 1:
            found += _datasets_inside(folder, depth - 1)
    return found


def _format_of(path: Path) -> Format | None:
    found = next((format_ for format_ in _FORMATS if format_.matches(path)), None)
    # Archives and tables beside folders of images do not change the format.
    if found is not None and path.is_dir() and _has_image_folders(path, found):
        return None
    if found is not None and found.name == "WebDataset":
        if are_known_archives(path):
            return None
        refuse_imagenet_archives(path)
    return found


def _has_image_folders(path: Path, other: Format) -> bool:
    """Return whether `path` has a training folder with images, or class folders with images.

    Args:
        path: A folder.
        other: The format that its remaining files have.
    """
    if "train" in find_part_folders(path):
        return True
    shards = [file.name for file in files_of(path, other.suffix)] if other.suffix else []
    if shards == ["metadata.parquet"]:
        return holds_images(path)  # Hugging Face's ImageFolder: metadata beside the images
    if other.name == "parquet" and not shards:
        return False  # a Hugging Face repository: shards in data/, and pictures for its page
    classes = (path / name for name in subfolders(path) if holds_images(path / name))
    return len(list(islice(classes, 2))) == 2


IMAGE_FOLDER = Format(
    "image folder", Path.is_dir, lambda path, part, beside_train: open_image_folder(path, part)
)
_BETON = ".beton file"
# The first that matches is used; what matches none may be an image folder.
_FORMATS = (
    Format(_BETON, lambda path: path.suffix == ".beton", open_beton),
    Format("IDX", idx.is_idx_folder, idx.open_idx),
    Format("CIFAR", cifar.is_cifar_folder, cifar.open_cifar),
    Format("ImageNet 32x32", imagenet32.is_imagenet32_folder, imagenet32.open_imagenet32),
    Format("WebDataset", webdataset.is_webdataset, webdataset.open_webdataset, ".tar"),
    Format("parquet", parquet.is_parquet, parquet.open_parquet, ".parquet"),
    # Last, because .beton files may lie beside the files that they were prepared from.
    Format(_BETON, lambda path: holds_beton_files(path) and not holds_images(path), open_beton),
)
