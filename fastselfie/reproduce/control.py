"""The supervised runs of another reproduction: they know of no pretraining, so an ablation of it
needs none of its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from fastselfie.reproduce.protocol import Plan
from fastselfie.reproduce.scheduler import RESULT, RUNS, Result
from fastselfie.runs.folder import read_facts
from fastselfie.stage_names import SUPERVISED
from fastselfie.system.console import say
from fastselfie.system.files import write_atomically

TAKEN_FROM = "taken_from"  # of a result: the folder of the reproduction whose run it is


def take_control(plan: Plan, source: Path, out: Path) -> None:
    """Copy results and logs of the supervised runs that `source` has finished and `out` lacks.

    The result comes last, as it says that a run is done. What `source` lacks is trained in `out`.
    """
    taken = 0
    for labels in plan.labels:
        arm = Path(RUNS) / f"labels-{labels:g}" / SUPERVISED
        for path in sorted((source / arm).glob(f"*/{RESULT}")):
            folder, result = out / arm / path.parent.name, read_facts(path)
            if not result or (folder / RESULT).exists():
                continue
            folder.mkdir(parents=True, exist_ok=True)
            if (log := path.with_name("log.jsonl")).exists():  # the table does without
                shutil.copy2(log, folder)
            result = {TAKEN_FROM: source.resolve().name, **result}  # or where that took it from
            write_atomically(folder / RESULT, json.dumps(result) + "\n")
            taken += 1
    if taken:
        say(f"{taken} supervised runs are those of {source}")


def control_note(results: Sequence[Result]) -> str | None:
    """What the table says of supervised runs, of which some may be another reproduction's."""
    taken = [result[TAKEN_FROM] for result in results if TAKEN_FROM in result]
    if not taken:
        return None
    which = "The" if len(taken) == len(results) else f"{len(taken)} of the {len(results)}"
    sources = " and ".join(dict.fromkeys(taken))
    return f"{which} supervised runs are those of {sources}, which know of no pretraining."
