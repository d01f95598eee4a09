"""Keeps what was found in tar files on a server, so that a resumed command need not read it again.

A tar file has no table: all of it is read to find its images.
"""

from __future__ import annotations

import json
from pathlib import Path

from fastselfie.data.sources.remote_files import RemoteFile
from fastselfie.data.sources.tar_shard import Member, Shard


class ShardIndex:
    """A text file with one line for each tar file: its name, size and version, and what it holds.

    Args:
        path: The file, which need not exist. An incomplete last line is removed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines: dict[str, str] = {}  # not decoded yet: it may be the index of millions
        if path.exists():
            text = path.read_text(encoding="ascii")
            whole = text[: text.rfind("\n") + 1]
            if whole != text:
                path.write_text(whole, encoding="ascii")
            self._lines = dict(line.split("\t", 1) for line in whole.splitlines())

    def __contains__(self, file: RemoteFile) -> bool:
        return _key(file) in self._lines

    def get(self, file: RemoteFile) -> Shard:
        """Return what was found in a file that is in the index, in this version of it."""
        images, labels, others, companions = json.loads(self._lines[_key(file)])
        members = {key: Member(*member) for key, member in images.items()}
        return Shard(members, labels, others, set(companions))

    def add(self, file: RemoteFile, shard: Shard) -> None:
        """Append what was found in a file."""
        found = shard.images, shard.labels, shard.others, sorted(shard.companions)
        self._lines[_key(file)] = json.dumps(found)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with open(self._path, "a", encoding="ascii") as lines:
            lines.write(f"{_key(file)}\t{self._lines[_key(file)]}\n")

    def remove(self) -> None:
        """Delete the file, which the finished command no longer needs."""
        self._path.unlink(missing_ok=True)


def _key(file: RemoteFile) -> str:
    return json.dumps([file.title, file.size, file.version])
