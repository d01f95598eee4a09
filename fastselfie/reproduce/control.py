"""Reuse the supervised trials of another reproduction.

They do not depend on pretraining, so an ablation of pretraining needs none of its own.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from fastselfie.reproduce.protocol import Protocol
from fastselfie.reproduce.rate_search import Result
from fastselfie.reproduce.scheduler import RESULT, RUNS
from fastselfie.runs.folder import read_facts
from fastselfie.stage_names import SUPERVISED
from fastselfie.system.console import say
from fastselfie.system.files import write_atomically

TAKEN_FROM = "taken_from"  # key of a result: folder name of the reproduction that trained it


def copy_control_results(protocol: Protocol, source: Path, out: Path) -> None:
    """Copy results and logs of finished supervised trials from `source`, where `out` has none.

    The result is copied last, because it marks a trial as done. Trials that `source` lacks are
    trained in `out`.
    """
    copied = 0
    for labels in protocol.labels:
        arm = Path(RUNS) / f"labels-{labels:g}" / SUPERVISED
        for path in sorted((source / arm).glob(f"*/{RESULT}")):
            folder, result = out / arm / path.parent.name, read_facts(path)
            if not result or (folder / RESULT).exists():
                continue
            folder.mkdir(parents=True, exist_ok=True)
            if (log := path.with_name("log.jsonl")).exists():  # the table does not need it
                shutil.copy2(log, folder)
            result = {TAKEN_FROM: source.resolve().name, **result}  # keeps an earlier source
            write_atomically(folder / RESULT, json.dumps(result) + "\n")
            copied += 1
    if copied:
        say(f"{copied} supervised trials are taken from {source}")


def control_note(results: Sequence[Result]) -> str | None:
    """Return the table's note on supervised trials from other reproductions; None without any."""
    taken = [result[TAKEN_FROM] for result in results if TAKEN_FROM in result]
    if not taken:
        return None
    which = "The" if len(taken) == len(results) else f"{len(taken)} of the {len(results)}"
    sources = " and ".join(dict.fromkeys(taken))
    return f"{which} supervised runs are taken from {sources}: they do not depend on pretraining."
