"""What the checks of gpu_check.py start: programs, and a dataset of photographs for them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from support.checks import require
from support.dry_gpu import sized, variables

BENCHMARKS = Path(__file__).parent.parent
CONFIGS = BENCHMARKS.parent / "configs"
# Runs a script in which torch.compile does nothing: its own switch refuses fullgraph=True.
_UNCOMPILED = (
    "import os, runpy, sys, torch; torch.compile = lambda function, **options: function;"
    "sys.argv = sys.argv[1:]; sys.path.insert(0, os.path.dirname(sys.argv[0]));"
    "runpy.run_path(sys.argv[0], run_name='__main__')"
)


def photographs(folder: Path, count: int = 64) -> Path:
    """JPEGs of smooth noise, 400 x 300, prepared as a .beton of four classes."""
    from PIL import Image

    random = np.random.default_rng(0)
    for k in range(sized(count, 40)):
        coarse = random.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        path = folder / "photographs" / f"c{k % 4}" / f"{k}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(coarse).resize((400, 300), Image.Resampling.BICUBIC).save(path, quality=90)
    out = folder / "photographs.beton"
    run("-m", "fastselfie", "prepare", str(folder / "photographs"), "--out", str(out))
    return out


def script(name: str, *arguments: str) -> dict[str, Any]:
    """Run a script of benchmarks/ and return its result."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        run(*sized((), ("-c", _UNCOMPILED)), str(BENCHMARKS / name), *arguments, "--json", str(out))
        result: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return result


def run(*arguments: str) -> None:
    """Run a Python program, and its workers no longer than this check may take.

    Raises:
        CheckError: It fails. The message is the end of its standard error.
    """
    with subprocess.Popen(
        [sys.executable, *arguments], env=variables(), stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            _, said = process.communicate()
        finally:  # where the time is over, its workers would go on and hold the GPU
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    require(process.returncode == 0, said[-2000:])
