"""The supervised runs of another reproduction: they know of no pretraining, so an ablation of it
needs none of its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from fastselfie.atomic import write_atomically
from fastselfie.log import say
from fastselfie.report.folder import read_facts
from fastselfie.reproduce.agenda import RESULT, RUNS
from fastselfie.reproduce.plan import Plan
from fastselfie.run import SUPERVISED

CONTROL = "control.json"


def take_control(plan: Plan, source: Path, out: Path) -> None:
    """Copy results and logs of the supervised runs that `source` has finished and `out` lacks.

    The result comes last, as it says that a run is done. What `source` lacks is trained in `out`.
    control.json keeps where each is from, and is written before them.
    """
    lacking = {}
    for labels in plan.labels:
        arm = Path(RUNS) / f"labels-{labels:g}" / SUPERVISED
        for result in sorted((source / arm).glob(f"*/{RESULT}")):
            folder = out / arm / result.parent.name
            if not (folder / RESULT).exists():
                lacking[folder] = result
    if not lacking:
        return
    names = {str(folder.relative_to(out / RUNS)): str(source.resolve()) for folder in lacking}
    origins = {**read_facts(out / CONTROL), **names}
    write_atomically(out / CONTROL, json.dumps(origins, indent=1) + "\n")
    for folder, result in lacking.items():
        folder.mkdir(parents=True, exist_ok=True)
        if (log := result.with_name("log.jsonl")).exists():  # the table does without
            shutil.copy2(log, folder)
        write_atomically(folder / RESULT, result.read_bytes())
    say(f"{len(lacking)} supervised runs are those of {source}")


def control_note(plan: Plan, out: Path) -> str | None:
    """What the table says of supervised runs that are another reproduction's; None: none is."""
    origins = read_facts(out / CONTROL)
    groups = [group for group in plan.groups if group.arm == SUPERVISED]
    # Of a search only the outcome is in the table; a rate has no part in a last run's name.
    last = [run.name for group in groups for run in plan.finals(group, 0.0)]
    taken = [Path(origins[name]).name for name in last if name in origins]
    if not taken:
        return None
    which = "The" if len(taken) == len(last) else f"{len(taken)} of the {len(last)}"
    sources = " and ".join(dict.fromkeys(taken))
    return f"{which} supervised runs are those of {sources}, which know of no pretraining."
