"""Image folders and the WebDataset shards made of them."""

from __future__ import annotations

from pathlib import Path


def files_of(folder: str) -> tuple[list[str], list[int]]:
    """Return the paths of DIR/CLASS/*, and the number of the class of each."""
    paths = sorted(Path(folder).glob("*/*"))
    names = {name: k for k, name in enumerate(sorted({p.parent.name for p in paths}))}
    return [str(p) for p in paths], [names[p.parent.name] for p in paths]


def shards_of(folder: str) -> str:
    """Return the folder of the WebDataset shards of an image folder."""
    return folder.rstrip("/") + "-shards"
