"""Explains why a path is not a supported dataset, and what to do about it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from fastselfie.data.sources.folder import holds_images, is_image, subfolders
from fastselfie.data.sources.shards import TEST_NAMES, TRAIN_NAMES, files_of
from fastselfie.errors import UserError

_WRITE = "write the images as files, one sub-folder for each class"
# Pattern of a file name -> what it is and what to do. The first match is used.
_KNOWN = (
    (r"(train|test|unlabeled)_[Xy]\.bin", f"STL-10's binary files are not supported: {_WRITE}"),
    (r"(train|test|extra)_32x32\.mat", f"SVHN's MATLAB files are not supported: {_WRITE}"),
    (r".*\.mat", f"MATLAB files are not supported: {_WRITE}"),
    (r".*\.(h5|hdf5?)", f"HDF5 files are not supported: {_WRITE}"),
    (r".*\.(mdb|lmdb)", f"LMDB files are not supported: {_WRITE}"),
    (r".*(\.tfrecords?|-\d{5}-of-\d{5})", f"TFRecord files are not supported: {_WRITE}"),
    (r".*\.(rec|npz|npy|pkl|pickle|pt|pth|arrow|feather)",
     f"files of arrays and tables are not supported, except those in docs/data.md: {_WRITE}"),
    (r".*\.beton\.(partial|journal)", "is incomplete: run the same `fastselfie prepare` again"),
    (r".*\.beton", "a .beton file is a dataset of its own: pass its path"),
    (r"(?i:.*\.beton)", "its suffix is not in lower case: rename it to end in .beton"),
    (r".*\.(tar\.\w+|tgz|tbz2?|txz|zip|7z|rar)", "archives are not supported: unpack it, and pass "
     "the folder"),
    (r".*idx[123]-(ubyte|int)(\.gz)?|(data|test)_batch(_\d)?(\.bin)?|(train|val)_data(_batch_\d+)?",
     "one file of a dataset: pass the folder that it is in"),
    (r".*\.(gz|bz2|xz|zst)", "compressed files are not supported: decompress it"),
    (r".*\.(csv|tsv)", f"pixels in a table are not supported: {_WRITE}"),
)  # fmt: skip
# Archives of whole datasets, which are not compressed shards.
_ARCHIVES = re.compile(
    r"(cifar-100?-|(101|256)_ObjectCategories|caltech|stl10|food-101|CUB_200"
    r"|imagenet(te|woof)|tiny-imagenet|dtd-|ILSVRC2012_devkit|102flowers).*\.(tar\.\w+|tgz)"
    r"|(images|annotations)\.(tar\.\w+|tgz)"
)
_DEPTH = 3  # levels of folders below the path that are searched


def explain(path: Path) -> str:
    """Explain why a file, or a folder without images, is not a dataset.

    Returns:
        The reason and what to do; "" for a folder without known files.
    """
    if not path.is_dir():
        if is_image(path.name):
            return "is one image: pass the folder that it is in"
        reason = (why for pattern, why in _KNOWN if re.fullmatch(pattern, path.name))
        unknown = "not a dataset: pass a folder of images, or a .beton, .tar or .parquet file"
        return next(reason, unknown)
    names = [
        str((folder / entry.name).relative_to(path))
        for folder in _down(path, _DEPTH)
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name)
        if entry.is_file()
    ]
    for pattern, why in _KNOWN:
        for name in names:
            if re.fullmatch(pattern, os.path.basename(name)):
                return f"it holds {name}: {why}"
    return ""


def find_parts_inside(path: Path) -> Path | None:
    """Return the first folder, from `path` down, with image folders of several parts, or None."""
    for folder in _down(path, _DEPTH):
        names = {name.lower(): folder / name for name in subfolders(folder)}
        train = any(holds_images(names[name]) for name in TRAIN_NAMES if name in names)
        if train and any(holds_images(names[name]) for name in TEST_NAMES if name in names):
            return folder
    return None


def are_known_archives(path: Path) -> bool:
    """Return whether the only tar files are the compressed archives of well-known datasets."""
    names = [path.name] if path.is_file() else os.listdir(path)
    archives = any(_ARCHIVES.fullmatch(name) for name in names)
    return archives and not any(name.endswith(".tar") for name in names)


def refuse_imagenet_archives(path: Path) -> None:
    """Raise UserError if a tar file is one of ImageNet's own: of one class, or of all of them."""
    names = [path.name] if path.is_file() else [file.name for file in files_of(path, ".tar")]
    for name in sorted(names):
        if re.fullmatch(r"n\d{8}\.tar|ILSVRC2012_img_train.*\.tar", name):
            raise UserError(
                f"{path}: {name} is one of ImageNet's archives, where the name of a tar file is "
                "the class: unpack each to a folder of its name, see docs/data.md"
            )


def _down(path: Path, depth: int) -> Iterator[Path]:
    yield path
    if depth:
        for name in subfolders(path):
            yield from _down(path / name, depth - 1)
