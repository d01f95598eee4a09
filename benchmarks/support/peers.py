"""Which peers an interpreter can import, and their versions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import NamedTuple

from fastselfie.errors import UserError

_LOOK = """
import importlib, importlib.metadata, json, sys
importlib.import_module(sys.argv[1])
print(json.dumps({name: importlib.metadata.version(name) for name in sys.argv[2:]}))
"""


class Peer(NamedTuple):
    """What an import in another process found.

    Args:
        versions: Of the packages that were asked for.
        problem: Why the module cannot be imported, or "".
    """

    versions: dict[str, str]
    problem: str


def look_up(module: str, packages: Sequence[str], python: str | None = None) -> Peer:
    """Import a module with an interpreter, by default this one, and read packages' versions.

    Raises:
        UserError: There is no such interpreter.
    """
    command = [python or sys.executable, "-c", _LOOK, module, *packages]
    environment = dict(os.environ)
    if python:
        environment.pop("PYTHONPATH", None)  # it may hold packages of this interpreter
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    except OSError as error:
        message = f"--{module} {python}: {error.strerror}: give a Python interpreter"
        raise UserError(message) from error
    *_, last = (done.stderr if done.returncode else done.stdout).splitlines() or ["no output"]
    return Peer({}, last) if done.returncode else Peer(json.loads(last), "")
