"""The list of images that `fastselfie prepare --on-error skip` left out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


class SkipList:
    """FILE.skipped.txt beside FILE.beton: number in the source, path and reason, tab-separated.

    Opening it to go on at `next_source` drops what comes from there on, which will be tried again;
    there is no file where nothing was skipped. A line is durable before `add` returns, so before
    any image after it is: what was skipped is known after a kill or a power cut too.
    """

    def __init__(self, out: Path, next_source: int) -> None:
        self.path = skip_list_of(out)
        if not self.path.exists():
            return
        lines = self.path.read_text(encoding="utf-8", errors="surrogateescape").split("\n")
        # The last is empty, or cut by a kill.
        kept = [f"{line}\n" for line in lines[:-1] if _number(line) < next_source]
        if kept:
            aside = self.path.with_name(self.path.name + ".partial")
            aside.write_text("".join(kept), encoding="utf-8", errors="surrogateescape")
            os.replace(aside, self.path)
        else:
            self.path.unlink()

    def add(self, index: int, name: str, reason: str) -> None:
        """Note that image `index` of the source, called `name`, was skipped."""
        reason = reason.removeprefix(f"{name}: ")
        texts = ("".join(" " if c in "\t\r\n" else c for c in text) for text in (name, reason))
        with open(self.path, "a", encoding="utf-8", errors="surrogateescape") as file:
            file.write("\t".join((str(index), *texts)) + "\n")
            file.flush()
            os.fsync(file.fileno())


def skip_list_of(beton: Path) -> Path:
    """Where the list of a .beton file is, if there is one."""
    return beton.with_suffix(".skipped.txt")


def skipped_lines(path: Path) -> Iterator[tuple[int, str, str]]:
    """(number in the source, name, reason) of each line; none where there is no list."""
    if not path.exists():
        return
    # Not splitlines, which takes what may stand in a name for the end of a line.
    for line in path.read_text(encoding="utf-8", errors="surrogateescape").split("\n")[:-1]:
        number, name, reason = line.split("\t", 2)
        yield int(number), name, reason


def _number(line: str) -> int:
    number = line.partition("\t")[0]
    return int(number) if number.isdigit() else -1
