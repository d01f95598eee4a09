"""Compile every tile that `runtime.kernels: auto` chooses, for six GPUs and several Tritons.

python benchmarks/triton_sweep.py --json OUT [--triton FOLDER ...]

No GPU is needed. A FOLDER has another version: pip install --target FOLDER --no-deps triton==3.3.0.
The result has, for each version and program, the registers of a thread, spilled bytes and bytes of
shared memory. Exit status 1: something spills, or wants more shared memory than some GPU has.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from support.arguments import Parser, result_file
from support.conditions import command
from support.script import run_script, say

from fastselfie.errors import UserError

HERE = Path(__file__).parent
SHARED_BYTES = 99 * 1024  # of a program on sm_86, 89 and 120; others have more


def main(arguments: list[str]) -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", required=True, metavar="OUT")
    parser.add_argument("--triton", nargs="*", default=[], metavar="FOLDER")
    options = parser.parse_args(arguments)
    out = result_file(options.json)
    for folder in options.triton:
        if not (Path(folder) / "triton").is_dir():
            raise UserError(f"--triton {folder}: it holds no triton: pip install it with --target")
    versions = {}
    for folder in [None, *options.triton]:
        version, rows = _swept(folder)
        versions[version] = rows
    result = {"versions": versions, "protocol": {"command": command()}}
    # A line for each shape: the numbers of one GPU a line would be 10,000 lines.
    text = json.dumps(result, separators=(",", ":")).replace('},"', '},\n"')
    out.write_text(text + "\n", encoding="utf-8")
    bad = failures(result)
    for line in bad:
        print(line)
    raise SystemExit(1 if bad else 0)


def failures(result: dict[str, Any]) -> list[str]:
    """Return a line for each tile that spills or wants too much shared memory."""
    return [
        f"Triton {version}, {shape}, {target}: {spilled} bytes spilled, {shared} of shared memory"
        for version, rows in result["versions"].items()
        for shape, row in rows.items()
        for target, (_, spilled, shared) in row["targets"].items()
        if spilled or shared > SHARED_BYTES
    ]


def _swept(folder: str | None) -> tuple[str, dict[str, Any]]:
    """Return the version, and {program and shape: its tile, and numbers for each target}."""
    paths = [*filter(None, [folder and str(Path(folder).resolve())]),
             *filter(None, [os.environ.get("PYTHONPATH")])]  # fmt: skip
    variables = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join(paths)}
    call = [sys.executable, "-m", "support.sweep"]
    rows: dict[str, Any] = {}
    with subprocess.Popen(
        call, cwd=HERE, env=variables, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        version = json.loads(process.stdout.readline())["triton"]
        for line in process.stdout:
            found = json.loads(line)
            name = f"{found['program']}: {found['shape']}"
            if name not in rows:
                say(f"Triton {version}, {name}")
            numbers = [found[key] for key in ("registers", "spilled_bytes", "shared_bytes")]
            row = rows.setdefault(name, {"tile": list(found["tile"].values()), "targets": {}})
            row["targets"][found["target"]] = numbers
    if process.returncode:
        raise UserError(f"Triton {version}: a program does not compile, see above")
    return version, rows


if __name__ == "__main__":
    run_script(main, sys.argv[1:])
