"""Makes the README's tables from the committed results, between their markers.

python benchmarks/readme.py            rewrite README.md
python benchmarks/readme.py --check    exit 1 where it differs from the results
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def quickstart(result: dict[str, Any]) -> str:
    """The figures of one `make quickstart`."""
    figures, machine = result["figures"], result["environment"]
    rows = [
        ("pretext accuracy, held out", f"{figures['pretext_accuracy']:.1%}",
         f"chance {result['chance']:.0%}"),
        ("finetuned, top-1", f"{figures['finetuned_accuracy']:.1%}",
         f"{result['labels']:.0%} of the labels, one run"),
        ("supervised from scratch, top-1", f"{figures['supervised_accuracy']:.1%}",
         "the same network, steps and labels"),
        ("pretraining", f"{figures['images_per_s']:,.0f} images/s", machine["processor"]
         + f", {machine['threads']} threads, torch {machine['torch']}"),
        ("in all", f"{figures['seconds']:,.0f} s", ""),
    ]  # fmt: skip
    lines = ["| `make quickstart` | | |", "| --- | --- | --- |"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {"quickstart": quickstart}


def rendered(text: str) -> str:
    """`text` with every marked block made anew from its result file."""
    for name, table in TABLES.items():
        result = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        opening, closing = f"<!-- {name} -->", f"<!-- /{name} -->"
        head, found, rest = text.partition(opening)
        _, closed, tail = rest.partition(closing)
        if not found or not closed:
            raise SystemExit(f"README.md: the markers {opening} and {closing} are not there")
        text = f"{head}{opening}\n{table(result)}\n{closing}{tail}"
    return text


def main(check: bool) -> None:
    path = ROOT / "README.md"
    before = path.read_text(encoding="utf-8")
    after = rendered(before)
    if check and before != after:
        raise SystemExit("README.md differs from benchmarks/results: python benchmarks/readme.py")
    path.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main("--check" in sys.argv[1:])
