"""Counts the files of a dataset that are not read, and describes them in one line."""

from __future__ import annotations

import os
from collections.abc import Sequence

# Files that are common beside images: texts, tables of labels, files of file managers.
_EXPECTED_SUFFIXES = frozenset({
    ".bib", ".cfg", ".cls", ".conf", ".csv", ".db", ".html", ".ini", ".json", ".jsonl", ".lnk",
    ".log", ".md", ".md5", ".pdf", ".py", ".rst", ".sh", ".sha", ".sha1", ".sha256", ".tex",
    ".toml", ".tsv", ".txt", ".url", ".xml", ".yaml", ".yml",
})  # fmt: skip
_EXPECTED_NAMES = frozenset({"icon\r", "license", "makefile", "readme", "thumbs.db"})


def is_expected(name: str) -> bool:
    """Return whether a file of this name is clearly no image: hidden, a text or a table."""
    lower = name.lower()
    suffix = os.path.splitext(lower)[1]
    return name.startswith(".") or lower in _EXPECTED_NAMES or suffix in _EXPECTED_SUFFIXES


def describe_ignored(names: Sequence[str]) -> str:
    """Return how many files are ignored and the first of them; "" if there are none."""
    if not names:
        return ""
    return f"{len(names):,} file{'s' * (len(names) > 1)} ignored, first: {names[0]}"
