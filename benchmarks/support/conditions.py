"""The conditions that a result names: the machine, the packages, the command."""

from __future__ import annotations

import importlib.metadata
import os
import shlex
import sys
from pathlib import Path
from typing import Any

_PEERS = ("ffcv", "imagecodecs", "kornia", "numba", "numpy", "nvidia-dali", "opencv-python",
          "pillow", "simplejpeg", "spdl", "triton", "webdataset")  # fmt: skip


def environment(threads: int) -> dict[str, Any]:
    """Set torch to `threads` threads; return the machine and the versions of the peers."""
    import torch

    from fastselfie.runs import doctor

    torch.set_num_threads(threads)
    packages = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions()}
    peers = {k: v for k, v in sorted(packages.items()) if k.lower().startswith(_PEERS)}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return doctor.environment(device) | {"peers": peers}


def command() -> str:
    """Return the command line of this process."""
    script = Path(sys.argv[0]).name
    return shlex.join(["python", f"benchmarks/{script}", *map(named, sys.argv[1:])])


def named(argument: str) -> str:
    """Return a path without its folders, which are of this machine only."""
    return Path(argument).name if os.path.isabs(argument) else argument
