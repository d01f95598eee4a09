"""Runs the scripts of benchmarks/ as a user does, each in its own process."""

from __future__ import annotations

import os
import subprocess
import sys

from conftest import REPOSITORY

LIMIT = 1800  # seconds, of a hang: a busy machine takes its time


def run_benchmark(*arguments, cwd=REPOSITORY, first=(), **variables):
    """Run Python with `arguments`, such as benchmarks/step.py and its options.

    `first` are folders that are imported from before the checkout. `variables` of the environment
    are set, or removed where they are None.
    """
    inherited = os.environ.get("PYTHONPATH", "")
    paths = [*map(str, first), str(REPOSITORY), *filter(None, [inherited])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **variables}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={name: value for name, value in environment.items() if value is not None},
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT,
    )
