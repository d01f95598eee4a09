"""The list of images that `fastselfie prepare --on-error skip` skipped."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


class SkipList:
    """Writes FILE.skipped.txt beside FILE.beton, only if an image is skipped.

    A line has the image's index in the source, its path and the reason, separated by tabs. A line
    is durable before `add` returns, and so before any later image. The list is therefore complete
    after a kill or a power failure too.

    Args:
        out: The .beton file.
        next_source: Where the conversion resumes. Lines from there on are dropped, because these
            images are tried again.
    """

    def __init__(self, out: Path, next_source: int) -> None:
        self.path = skip_list_of(out)
        if not self.path.exists():
            return
        lines = self.path.read_text(encoding="utf-8", errors="surrogateescape").split("\n")
        # The last line is empty, or incomplete after a kill.
        kept = [f"{line}\n" for line in lines[:-1] if _number(line) < next_source]
        if kept:
            aside = self.path.with_name(self.path.name + ".partial")
            aside.write_text("".join(kept), encoding="utf-8", errors="surrogateescape")
            os.replace(aside, self.path)
        else:
            self.path.unlink()

    def add(self, index: int, name: str, reason: str) -> None:
        """Add a skipped image.

        Args:
            index: Its index in the source.
            name: Its name.
            reason: Why it is unreadable; may begin with the name.
        """
        reason = reason.removeprefix(f"{name}: ")
        texts = ("".join(" " if c in "\t\r\n" else c for c in text) for text in (name, reason))
        with open(self.path, "a", encoding="utf-8", errors="surrogateescape") as file:
            file.write("\t".join((str(index), *texts)) + "\n")
            file.flush()
            os.fsync(file.fileno())


def skip_list_of(beton: Path) -> Path:
    """Return the path of a .beton file's list, which may not exist."""
    return beton.with_suffix(".skipped.txt")


def skipped_lines(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield (index in the source, name, reason) of each line; nothing if there is no list."""
    if not path.exists():
        return
    # Not splitlines, which also splits at characters that may be in a name.
    for line in path.read_text(encoding="utf-8", errors="surrogateescape").split("\n")[:-1]:
        number, name, reason = line.split("\t", 2)
        yield int(number), name, reason


def _number(line: str) -> int:
    number = line.partition("\t")[0]
    return int(number) if number.isdigit() else -1
