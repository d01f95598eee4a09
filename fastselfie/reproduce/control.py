"""The supervised runs of another reproduction: they know of no pretraining, so an ablation of it
needs none of its own."""

from __future__ import annotations

import shutil
from pathlib import Path

from fastselfie.atomic import write_atomically
from fastselfie.log import say
from fastselfie.reproduce.agenda import RESULT, RUNS
from fastselfie.reproduce.plan import Plan
from fastselfie.run import SUPERVISED


def take_control(plan: Plan, source: Path, out: Path) -> None:
    """Copy results and logs of the supervised runs that `source` has finished and `out` lacks.

    The result comes last, as it says that a run is done. What `source` lacks is trained in `out`.
    """
    taken = 0
    for labels in plan.labels:
        arm = Path(RUNS) / f"labels-{labels:g}" / SUPERVISED
        for result in sorted((source / arm).glob(f"*/{RESULT}")):
            folder = out / arm / result.parent.name
            if (folder / RESULT).exists():
                continue
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy2(result.with_name("log.jsonl"), folder)
            write_atomically(folder / RESULT, result.read_bytes())
            taken += 1
    say(f"{taken} supervised runs are those of {source}")
