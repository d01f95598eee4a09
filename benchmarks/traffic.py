"""Count the memory traffic of one pretraining step in bfloat16 on an H100, without one.

python benchmarks/traffic.py --json OUT [--config in224] [--batch 128,256] [KEY=VALUE ...]

Three forms of the step are counted: eager torch, torch.compile alone, and torch.compile with our
Triton kernels. Nothing is measured. Each kernel reads its inputs once and writes its outputs once;
support/step_traffic.py and support/compiled_traffic.py say how kernels are found and what else
counts. Every form also has the peak memory that its tensors need, beside the trainer's estimate.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from support.arguments import Parser, result_file
from support.conditions import command
from support.script import run_script, say

from fastselfie.errors import UserError

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "tests"))


def main() -> None:
    parser = Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", required=True, metavar="OUT")
    parser.add_argument("--config", default="in224", help="a name or a file; here in224")
    parser.add_argument("--batch", default="128,256", help="images a step, numbers with commas")
    parser.add_argument("sets", nargs="*", metavar="KEY=VALUE", help="changes of the config")
    options = parser.parse_args()
    if not all(b.isdecimal() and int(b) > 1 for b in options.batch.split(",")):
        raise UserError(f"--batch {options.batch}: give numbers above 1, with commas")
    path = result_file(options.json)
    import torch

    result = {
        "claim": "bytes that a step moves in the memory of an H100, counted without one",
        "command": command(),
        "config": options.config,
        "torch": str(torch.__version__),
        "rows": _counted(options.config, options.batch, options.sets),
    }
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _counted(config: str, batches: str, sets: list[str]) -> Any:
    """Return the rows of support/step_forms.py, which changes torch for its whole process."""
    from helpers.fake_cuda.build import build_hooks

    folders = [ROOT, ROOT / "tests", ROOT / "benchmarks"]
    paths = [*map(str, folders), *filter(None, [os.environ.get("PYTHONPATH", "")])]
    variables = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    with TemporaryDirectory() as folder:
        say("a step on fake tensors, for each form and batch ...")
        hooks = build_hooks(Path(folder))
        call = [sys.executable, "-W", "ignore", "-m", "support.step_forms", hooks, config, batches]
        done = subprocess.run(
            [*call, *sets], env={**variables, "PYTHONPATH": os.pathsep.join(paths)},
            stdout=subprocess.PIPE, check=False,
        )  # fmt: skip
    if done.returncode:
        raise UserError(f"support/step_forms.py failed with status {done.returncode}: see above")
    return json.loads(done.stdout)


if __name__ == "__main__":
    run_script(main)
