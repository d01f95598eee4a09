"""Compiles hooks.cpp against the torch that is installed."""

from __future__ import annotations

import os
import subprocess
import sysconfig
from pathlib import Path

import torch

LIMIT = 1200  # seconds, of a hang


def build_hooks(folder: Path) -> Path:
    """Compile the library that must be loaded before torch into `folder`, and return its path."""
    hooks, root = folder / "hooks.so", Path(torch.__file__).parent
    compiler = sysconfig.get_config_var("CXX").split()[0]
    source = Path(__file__).with_name("hooks.cpp")
    include, libraries = root / "include", root / "lib"
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    subprocess.run(
        [os.environ.get("CXX", compiler), "-std=c++20", "-shared", "-fPIC", abi, source, "-o",
         hooks, f"-I{include}", f"-L{libraries}", f"-Wl,-rpath,{libraries}", "-lc10",
         "-ltorch_cpu"],
        check=True, timeout=LIMIT,
    )  # fmt: skip
    return hooks
