"""Finds the tar or parquet files that a URL names: one file, a folder, or a pattern."""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath

from fastselfie.data.sources.remote_files import (
    RemoteFile,
    file_system,
    info_of,
    retried,
    shown,
    version_of,
)
from fastselfie.data.sources.shard_checks import refuse_unread, unread_names
from fastselfie.errors import UserError

SUFFIXES = (".tar", ".parquet")
CONNECTIONS = 16  # at once, for small requests, which mostly wait
_NUMBERS = re.compile(r"\{(\d+)\.\.(\d+)\}")
_COMMIT = re.compile(r"@[0-9a-f]{40}(/|$)")


@dataclass(frozen=True)
class Listing:
    """The files of a dataset on a server.

    Attributes:
        title: What messages call the dataset.
        suffix: One of SUFFIXES.
        files: In order of name, at least one.
        is_folder: Whether the files were found in a folder, where names tell parts.
    """

    title: str
    suffix: str
    files: Sequence[RemoteFile]
    is_folder: bool


def list_files(url: str) -> Listing:
    """Find the files that a URL names.

    Args:
        url: A .tar or .parquet file; a folder of them, or one with a folder data/ as on the Hugging
            Face hub; or a pattern: with * on servers that list their files, with {0000..0146} on
            any.

    Raises:
        UserError: Nothing is there, the server refuses, or the files are compressed or of both
            kinds.
    """
    title = shown(url)
    pinned = retried(title, lambda: _pinned(url))
    urls = _expanded(pinned)
    is_folder = len(urls) == 1 and PurePosixPath(title).suffix not in SUFFIXES
    if len(urls) == 1 and "*" in title:
        urls = retried(title, lambda: _matches(pinned))
        if not urls:
            raise UserError(f"{title}: no file matches: check the pattern")
    elif is_folder:
        urls = _in_folder(pinned, title)
    suffix = _suffix_of(urls, title)
    is_pinned = _COMMIT.search(pinned) is not None

    def looked_up(each: str) -> RemoteFile:
        own = shown(each).replace(shown(pinned), title) if is_pinned else shown(each)
        info = retried(own, lambda: info_of(each))
        if info.get("size") is None:
            raise UserError(f"{own}: its server does not say how large it is: download it")
        return RemoteFile(each, own, int(info["size"]), version_of(info), is_pinned)

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        files = list(pool.map(looked_up, sorted(urls)))
    return Listing(title, suffix, files, is_folder or "*" in title)


def _pinned(url: str) -> str:
    """Return the URL of the newest commit, where it names a repository of the Hugging Face hub."""
    found = re.match(r"hf://datasets/([^/@]+/[^/@]+)(?:@([^/]+))?(/.*)?$", url)
    if found is None:
        return url
    file_system(url)  # says what is not installed
    from huggingface_hub import HfApi

    name, revision, rest = found.groups()
    commit = HfApi().dataset_info(name, revision=revision).sha
    return f"hf://datasets/{name}@{commit}{rest or ''}"


def _expanded(url: str) -> list[str]:
    """Return the URLs that {0000..0146} stands for."""
    found = _NUMBERS.search(url)
    if found is None:
        return [url]
    first, last = found.groups()
    numbers = (str(n).zfill(len(first)) for n in range(int(first), int(last) + 1))
    urls = [f"{url[: found.start()]}{number}{url[found.end() :]}" for number in numbers]
    if not urls:
        raise UserError(f"{shown(url)}: {found[0]} is empty: write the smaller number first")
    return [each for one in urls for each in _expanded(one)]


def _matches(url: str) -> list[str]:
    system, path = file_system(url)
    return [system.unstrip_protocol(found) for found in system.glob(path)]


def _in_folder(url: str, title: str) -> list[str]:
    """Return the URLs of the tar or parquet files in a folder, or in data/ below it."""
    found = retried(title, lambda: _children(url))
    names = [PurePosixPath(shown(child)).name for child, _ in found]
    files = [child for child, _ in found if PurePosixPath(shown(child)).suffix in SUFFIXES]
    if not files and any(
        name == "data" and is_folder for name, (_, is_folder) in zip(names, found, strict=True)
    ):
        return _in_folder(f"{url.rstrip('/')}/data", f"{title.rstrip('/')}/data")
    for suffix in SUFFIXES:
        refuse_unread(unread_names(names, suffix, title))
    if not files:
        raise UserError(f"{title}: no .tar or .parquet files there: pass their folder or URL")
    return files


def _children(url: str) -> list[tuple[str, bool]]:
    """Return the URL of each entry of a folder, and whether it is a folder."""
    system, path = file_system(url)
    entries = system.ls(path, detail=True)
    return [(system.unstrip_protocol(e["name"]), e["type"] == "directory") for e in entries]


def _suffix_of(urls: Sequence[str], title: str) -> str:
    suffixes = sorted({PurePosixPath(shown(url)).suffix for url in urls})
    unread = [url for url in urls if PurePosixPath(shown(url)).suffix not in SUFFIXES]
    if unread:
        name = PurePosixPath(shown(unread[0])).name
        for suffix in SUFFIXES:
            refuse_unread(unread_names([name], suffix, title.rpartition("/")[0]))
        raise UserError(f"{shown(unread[0])}: not a .tar or .parquet file: pass these only")
    if len(suffixes) > 1:
        raise UserError(f"{title}: holds both .tar and .parquet files: pass a pattern of one kind")
    return suffixes[0]
