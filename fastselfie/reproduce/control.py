"""The supervised runs of another reproduction: they know of no pretraining, so an ablation of it
needs none of its own."""

from __future__ import annotations

import shutil
from pathlib import Path

from fastselfie.atomic import write_atomically
from fastselfie.log import say
from fastselfie.reproduce.agenda import RESULT, RUNS
from fastselfie.reproduce.plan import Plan, Run
from fastselfie.run import SUPERVISED

CONTROL = "control.txt"


def take_control(plan: Plan, source: Path, out: Path) -> None:
    """Copy results and logs of the supervised runs that `source` has finished and `out` lacks.

    The result comes last, as it says that a run is done. What `source` lacks is trained in `out`.
    control.txt keeps where they are from.
    """
    taken = 0
    for labels in plan.labels:
        arm = Path(RUNS) / f"labels-{labels:g}" / SUPERVISED
        for result in sorted((source / arm).glob(f"*/{RESULT}")):
            folder = out / arm / result.parent.name
            if (folder / RESULT).exists():
                continue
            folder.mkdir(parents=True, exist_ok=True)
            if (log := result.with_name("log.jsonl")).exists():  # the table does without
                shutil.copy2(log, folder)
            write_atomically(folder / RESULT, result.read_bytes())
            taken += 1
    if taken:
        write_atomically(out / CONTROL, f"{source}\n")
        say(f"{taken} supervised runs are those of {source}")


def has_result(run: Run, out: Path, control: Path | None) -> bool:
    """Whether `out` has it, or would take it from `control`."""
    sources = [out]
    if control is not None and run.group.arm == SUPERVISED:
        sources.append(control)
    return any((source / RUNS / run.name / RESULT).exists() for source in sources)
