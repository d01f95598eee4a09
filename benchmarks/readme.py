"""Fill the tables of README.md and docs/ from the committed results.

python benchmarks/readme.py            rewrite the pages
python benchmarks/readme.py --check    exit 1 where a page differs from the results

A page holds a table between `<!-- NAME -->` and `<!-- /NAME -->`, for a NAME of TABLES.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from step import ISAS
from support import (
    decode_tables,
    loader_tables,
    recipe_tables,
    reliability_tables,
    step_tables,
    traffic_tables,
    training_tables,
)

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
_REPRODUCED = ("cifar10-slim", "tiny-imagenet-slim")
_THROUGHPUT = ("q90-224", "q90-160", "q90-128", "q90-eval", "orig-224", "resident")


def _read(name: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return result


def _read_all(pattern: str, *names: str) -> list[dict[str, Any]]:
    return [_read(pattern.format(name)) for name in names]


TABLES: dict[str, Callable[[], str]] = {
    "quickstart": lambda: training_tables.quickstart(_read("quickstart")),
    "accuracy": lambda: training_tables.accuracy(_read("reproduce-cifar10-slim")),
    "finals": lambda: training_tables.finals(_read_all("reproduce-{}", *_REPRODUCED)),
    "accuracy and rate": lambda: training_tables.accuracy_and_rate(
        _read("reproduce-cifar10-slim"), _read("step-context-cifar10-slim")
    ),
    "padding": lambda: training_tables.padding(_read("padding")),
    "recipes": lambda: recipe_tables.recipes(_read("recipe-cifar10")),
    "switches": lambda: recipe_tables.switches(_read("recipe-switches")),
    "7x7": lambda: recipe_tables.pretext_by_images(_read("recipe-tiny-imagenet-56")),
    "shortcut": lambda: training_tables.shortcut(_read("shortcut")),
    "speed": lambda: loader_tables.speed(_read("throughput-q90-224")),
    "throughput": lambda: loader_tables.throughput(_read_all("throughput-{}", *_THROUGHPUT)),
    "overhead": lambda: loader_tables.overhead(_read("loader-overhead")),
    "loaders": lambda: loader_tables.loaders(_read("throughput-q90-224")),
    "decode": lambda: decode_tables.decode(
        [_read(path.stem) for path in sorted(RESULTS.glob("decode*.json"))]
    ),
    "remote": lambda: loader_tables.remote(_read("remote")),
    "dataset size": lambda: loader_tables.dataset_size(_read("dataset-size")),
    "conversion": lambda: loader_tables.conversion(_read("conversion")),
    "step": lambda: step_tables.step(_read_all("step-{}", "cifar10", "in224")),
    "query": lambda: step_tables.step(_read_all("step-query-{}", "cifar10", "in224")),
    "beside": lambda: step_tables.beside(_read_all("step-beside-{}", *ISAS)),
    "kernels": lambda: step_tables.kernels(_read("kernels")),
    "norms": lambda: step_tables.norms(_read("kernels")),
    "traffic": lambda: traffic_tables.traffic(_read("traffic")),
    "sweep": lambda: step_tables.sweep(_read("triton-sweep")),
    "table cost": lambda: training_tables.table_cost(_read("table-cost")),
    "reliability": lambda: reliability_tables.reliability(_read("reliability")),
    "scaling": lambda: reliability_tables.scaling(_read("reliability")["parts"]["paper"]),
}


def fill(text: str) -> tuple[str, set[str]]:
    """Return `text` with its tables made again, and their names.

    Raises:
        SystemExit: a table is opened and not closed.
    """
    filled = set()
    for name, make_table in TABLES.items():
        opening, closing = f"<!-- {name} -->", f"<!-- /{name} -->"
        head, found, rest = text.partition(opening)
        if not found:
            continue
        _, closed, tail = rest.partition(closing)
        if not closed:
            raise SystemExit(f"{opening} has no {closing}: add it")
        text = f"{head}{opening}\n{make_table()}\n{closing}{tail}"
        filled.add(name)
    return text, filled


def main(check: bool) -> None:
    """Fill every page, or check that every page is filled."""
    unused = set(TABLES)
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        before = page.read_text(encoding="utf-8")
        after, filled = fill(before)
        unused -= filled
        if check and before != after:
            raise SystemExit(
                f"{page.relative_to(ROOT)} differs from benchmarks/results: "
                "run python benchmarks/readme.py"
            )
        if before != after:
            page.write_text(after, encoding="utf-8")
    if unused:
        raise SystemExit(f"no page shows these tables: {', '.join(sorted(unused))}")


if __name__ == "__main__":
    main("--check" in sys.argv[1:])
