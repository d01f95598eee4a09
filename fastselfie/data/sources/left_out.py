"""What a set holds beside its images: counted, and said once in one line."""

from __future__ import annotations

import os
from collections.abc import Sequence

# Of files that everybody expects beside images: texts, tables of labels, what file managers write.
_EXPECTED_SUFFIXES = frozenset({
    ".bib", ".cfg", ".cls", ".conf", ".csv", ".db", ".html", ".ini", ".json", ".jsonl", ".lnk",
    ".log", ".md", ".md5", ".pdf", ".py", ".rst", ".sh", ".sha", ".sha1", ".sha256", ".tex",
    ".toml", ".tsv", ".txt", ".url", ".xml", ".yaml", ".yml",
})  # fmt: skip
_EXPECTED_NAMES = frozenset({"icon\r", "license", "makefile", "readme", "thumbs.db"})


def is_expected(name: str) -> bool:
    """Whether nobody takes a file of this name for an image: hidden, a text or a table."""
    lower = name.lower()
    suffix = os.path.splitext(lower)[1]
    return name.startswith(".") or lower in _EXPECTED_NAMES or suffix in _EXPECTED_SUFFIXES


def left_out(names: Sequence[str]) -> str:
    """Count what is not taken and name the first; empty where there is nothing."""
    if not names:
        return ""
    return f"{len(names):,} file{'s' * (len(names) > 1)} left out, first: {names[0]}"
