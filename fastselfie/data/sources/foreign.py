"""What a path holds that is no set of images as it is: called by its name, with the way out."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from fastselfie.data.sources.folder import holds_images, is_image, subfolders
from fastselfie.data.sources.shards import TEST_NAMES, TRAIN_NAMES, files_of
from fastselfie.errors import UserError

_WRITE = "write its images as files, one sub-folder a class"
# Names of files -> what they are and what to do. The first that matches.
_KNOWN = (
    (r"(train|test|unlabeled)_[Xy]\.bin", f"STL-10's binary files are not read: {_WRITE}"),
    (r"(train|test|extra)_32x32\.mat", f"SVHN's MATLAB files are not read: {_WRITE}"),
    (r".*\.mat", f"MATLAB files are not read: {_WRITE}"),
    (r".*\.(h5|hdf5?)", f"HDF5 files are not read: {_WRITE}"),
    (r".*\.(mdb|lmdb)", f"LMDB files are not read: {_WRITE}"),
    (r".*(\.tfrecords?|-\d{5}-of-\d{5})", f"TFRecord files are not read: {_WRITE}"),
    (r".*\.(rec|npz|npy|pkl|pickle|pt|pth|arrow|feather)",
     f"files of arrays and tables are not read but for those in docs/data.md: {_WRITE}"),
    (r".*\.beton\.(partial|journal)", "is not whole: let `fastselfie prepare` go on with it"),
    (r".*\.beton", "a .beton file is a set of its own: give its path"),
    (r".*\.(tar\.\w+|tgz|tbz2?|txz|zip|7z|rar)", "an archive is not read: unpack it, and give the "
     "folder that comes out"),
    (r".*idx[123]-(ubyte|int)(\.gz)?|(data|test)_batch(_\d)?(\.bin)?|(train|val)_data(_batch_\d+)?",
     "a file of a set: give the folder that it is in"),
    (r".*\.(gz|bz2|xz|zst)", "a compressed file is not read: decompress it"),
    (r".*\.(csv|tsv)", f"pixels in a table are not read: {_WRITE}"),
)  # fmt: skip
# Archives of whole sets, which are no compressed shards.
_ARCHIVES = re.compile(
    r"(cifar-100?-|(101|256)_ObjectCategories|caltech|stl10|food-101|CUB_200"
    r"|imagenet(te|woof)|tiny-imagenet|dtd-|ILSVRC2012_devkit|102flowers).*\.(tar\.\w+|tgz)"
    r"|(images|annotations)\.(tar\.\w+|tgz)"
)
_DEPTH = 3  # folders from the path down that are searched


def explain(path: Path) -> str:
    """Why a file, or a folder without images, is no set of images; empty if it is just empty."""
    if not path.is_dir():
        if is_image(path.name):
            return "is one image: give the folder of its set"
        reason = (why for pattern, why in _KNOWN if re.fullmatch(pattern, path.name))
        unknown = "not a set of images: give their folder, or a .beton, .tar or .parquet file"
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


def parts_inside(path: Path) -> Path | None:
    """The first folder from `path` down that holds folders of images of several parts."""
    for folder in _down(path, _DEPTH):
        names = {name.lower(): folder / name for name in subfolders(folder)}
        train = any(holds_images(names[name]) for name in TRAIN_NAMES if name in names)
        if train and any(holds_images(names[name]) for name in TEST_NAMES if name in names):
            return folder
    return None


def are_known_archives(path: Path) -> bool:
    """Whether the only tar files are compressed ones of well-known sets."""
    names = [path.name] if path.is_file() else os.listdir(path)
    archives = any(_ARCHIVES.fullmatch(name) for name in names)
    return archives and not any(name.endswith(".tar") for name in names)


def refuse_imagenet_archives(path: Path) -> None:
    """Raise UserError where tar files are ImageNet's own: a class each, or those in one."""
    names = [path.name] if path.is_file() else [file.name for file in files_of(path, ".tar")]
    for name in sorted(names):
        if re.fullmatch(r"n\d{8}\.tar|ILSVRC2012_img_train.*\.tar", name):
            raise UserError(
                f"{path}: {name} is of ImageNet's archives, whose classes are the names of tar "
                "files: unpack each to a folder of its name, as docs/data.md says"
            )


def _down(path: Path, depth: int) -> Iterator[Path]:
    yield path
    if depth:
        for name in subfolders(path):
            yield from _down(path / name, depth - 1)
