"""What a result says of how it came about: the machine, the packages, the command."""

from __future__ import annotations

import importlib.metadata
import os
import shlex
import sys
from pathlib import Path
from typing import Any

_PEERS = ("ffcv", "nvidia-dali", "spdl", "webdataset", "numba", "opencv-python", "pillow", "numpy",
          "triton")  # fmt: skip


def environment(threads: int) -> dict[str, Any]:
    """The machine, with torch on `threads` threads, and the versions of what is compared."""
    import torch

    from fastselfie.runs import doctor

    torch.set_num_threads(threads)
    packages = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions()}
    peers = {k: v for k, v in sorted(packages.items()) if k.lower().startswith(_PEERS)}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return doctor.environment(device) | {"peers": peers}


def command() -> str:
    """This process's command line."""
    script = Path(sys.argv[0]).name
    return shlex.join(["python", f"benchmarks/{script}", *map(named, sys.argv[1:])])


def named(argument: str) -> str:
    """A path without its folders: a result speaks of files, not of one machine's disk."""
    return Path(argument).name if os.path.isabs(argument) else argument
