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

from step import ISAS

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


_NAMES = {
    "native": "native", "resident": "resident", "ffcv": "FFCV", "ffcv-shared": "FFCV, our file",
    "ffcv-raw": "FFCV", "dali-cpu": "DALI", "folder": "torch + Pillow", "spdl": "SPDL",
    "webdataset": "WebDataset",
}  # fmt: skip
# In the order of the README's rows; a table that is not measured yet has no row.
_THROUGHPUT = ["q90-224", "q90-160", "q90-128", "q90-eval", "orig-224", "resident"]
_RIVALS = (("ffcv", "ffcv-raw"), ("dali-cpu",), ("folder",))


def _median(spread: dict[str, float], form: str) -> str:
    return f"{spread['median']:{form}} ({spread['min']:{form}} to {spread['max']:{form}})"


def throughput(results: dict[str, dict[str, Any]]) -> str:
    """Ours in images/s, and how many times a rival's in the median, by the kind of images."""
    if not results:
        return "*Not measured yet: `benchmarks/run_all.sh PHOTOS`.*"
    lines = [
        "| images | ours, images/s | times FFCV | times DALI CPU | times torch + Pillow |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, result in results.items():
        ours, ratios = result["results"][0], result["ratios"]
        cells = [result["protocol"]["title"] or name, _median(ours["images_per_s"], ",.0f")]
        for rivals in _RIVALS:
            found = [ratios[key] for r in rivals if (key := f"{ours['loader']}/{r}") in ratios]
            cells.append(_median(found[0], ".2f") if found else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", _conditions(next(iter(results.values())))])


def loaders(results: dict[str, dict[str, Any]]) -> str:
    """Every loader of the first table: speed, CPU, memory, reading."""
    if not results:
        return "*Not measured yet.*"
    result = next(iter(results.values()))
    lines = [
        f"| {result['protocol']['title']} | images/s | CPU ms | peak MB | MB read an image |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in result["results"]:
        read = row["mb_read_per_image"]
        cells = [_NAMES[row["loader"]], _median(row["images_per_s"], ",.0f"),
                 f"{row['cpu_ms_per_image']:.2f}", f"{row['peak_rss_mb']:,.0f}",
                 f"{read:.3f}" if read else ""]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    both = result.get("end_to_end")
    if both is not None and both["step"]["max"] < 1.5 * both["step"]["min"]:
        # A step whose rounds differ more than that was measured beside other programs.
        rates = {name: f"{both[name]['median']:,.0f}" for name in ("loader", "step", "e2e")}
        share = both["e2e_share_of_binding"]
        lines += [
            "",
            f"`configs/{both['config']}.yaml` on the same file: the loader alone gives "
            f"{rates['loader']} images/s, the step alone {rates['step']}, both together on the "
            f"same cores {rates['e2e']}: the {both['binding']} binds. That is "
            f"{share['median']:.0%} ({share['min']:.0%} to {share['max']:.0%}) of what it gives on "
            f"the cores that decoding leaves it; {both['waiting']['median']:.1%} of a "
            "step goes by waiting for data.",
        ]
    return "\n".join(lines)


def kernels(result: dict[str, Any]) -> str:
    """Bytes of the distractor score by its model, and what its programs compile to."""
    lines = [
        "| distractor score, D = 1024, bfloat16 | bytes an image at the least | distinct | "
        "read and written in all | plain torch | registers, spilled bytes |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in result["traffic"]:
        shape, times = row["shape"], row["times_model"]
        compiled = [r for r in result["resources"] if r["shape"] == shape["name"]]
        usage = "; ".join(
            f"{r['target']}: {r['registers']}, {r['spilled_bytes']}" for r in compiled
        )
        form = "rows + columns" if shape["row_column"] else "one vector a location"
        cells = [f"M = {shape['m']}, {form}", f"{row['model_bytes'] / shape['b'] / 1024:.0f} KiB",
                 f"{times['distinct']:.2f} times", f"{times['launch'] + times['sums']:.2f} times",
                 f"{times['reference']:.1f} times", usage]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def conversion(result: dict[str, Any] | None) -> str:
    """`fastselfie prepare` beside FFCV's writer, by CPU time."""
    if result is None:
        return "*Not measured yet: `benchmarks/conversion.py PHOTOS`.*"
    lines = [
        "| conversion, images a CPU second | ours | FFCV's writer | times |",
        "| --- | --- | --- | --- |",
    ]
    for row in result["results"]:
        rates = row["images_per_cpu_s"]
        cells = [row["conversion"], _median(rates["ours"], ".0f"), _median(rates["ffcv"], ".0f"),
                 _median(row["ratio"], ".2f")]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def step(results: list[dict[str, Any]]) -> str:
    """Images/s of a training step, one switch turned at a time."""
    if not results:
        return "*Not measured yet: `benchmarks/step.py`.*"
    lines = []
    for result in results:
        first, batch = result["results"][0]["step"], result["batch"]
        lines += [
            f"| {result['config']}, {batch} images a step | images/s | ours is | peak MB "
            "| of a matmul's FLOP/s |",
            "| --- | --- | --- | --- | --- |",
        ]
        for row in result["results"]:
            ratio = result["ratios"].get(f"{first}/{row['step']}")
            times = f"{_median(ratio, '.2f')} times as fast" if ratio else ""
            cells = [row["step"], _median(row["images_per_s"], ".1f"), times,
                     f"{row['peak_rss_mb']:,.0f}",
                     f"{row['flop_utilisation']['median']:.0%}"]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
        compiled = next((r for r in result["results"] if "again_s" in r), None)
        rate = result["results"][0]["model_gflops_per_s"]["median"]
        losses = ", ".join(f"{name} {loss:.5f}" for name, loss in result["losses"].items())
        lines += [
            "",
            f"Ours, in {result['precision']}, runs at {rate:,.0f} GFLOP/s of the network; a large "
            f"product of two matrices\nreached {result['matmul_gflops_per_s']:,.0f} there. Loss of "
            f"one batch: {losses}."
            + (
                f"\nThe compiled step takes its first after {compiled['start_s']:.0f} s, "
                f"{compiled['again_s']:.0f} s at the next start."
                if compiled
                else ""
            ),
            "",
        ]
    machine = results[0]["environment"]
    protocol = results[0]["protocol"]
    lines.append(
        f"{machine['processor']}, {protocol['threads']} threads, torch {machine['torch']}; median "
        f"(min to max) of {protocol['rounds']} alternating rounds of "
        f"{protocol['seconds_a_round']:g} s."
    )
    return "\n".join(lines)


def beside(results: list[dict[str, Any]]) -> str:
    """Images/s of a training step while other programs keep cores busy, by instruction set."""
    if not results:
        return "*Not measured yet: `benchmarks/step.py --beside 1`.*"
    names = ["ours", "straightforward"]
    lines = [
        f"| oneDNN limited to | ours in | {' | '.join(names)} | ours/{names[1]} |",
        f"| --- | --- | {' | '.join('---' for _ in names)} | --- |",
    ]
    for result in results:
        rates = {row["step"]: _median(row["images_per_s"], ".1f") for row in result["results"]}
        cells = [
            result["protocol"]["onednn_max_cpu_isa"],
            result["precision"],
            *(rates[name] for name in names),
            _median(result["ratios"][f"{names[0]}/{names[1]}"], ".2f"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    machine, protocol = results[0]["environment"], results[0]["protocol"]
    busy = protocol["busy_programs_beside"]
    lines += [
        "",
        f"Images/s of {results[0]['config']}, {results[0]['batch']} images a step, "
        f"{protocol['threads']} threads beside {busy} busy program{'s' if busy > 1 else ''}. "
        f"{machine['processor']}, torch {machine['torch']}; median (min to max) of "
        f"{protocol['rounds']} alternating rounds of at least "
        f"{min(result['protocol']['seconds_a_round'] for result in results):g} s.",
    ]
    return "\n".join(lines)


def reproduce(results: list[dict[str, Any]]) -> str:
    """The paper's table beside ours, and what was changed in an ablation."""
    if not results:
        return "*Not run yet: `fastselfie reproduce`, then `benchmarks/reproduce.py`.*"
    blocks = []
    for result in results:
        machine = result["environment"]
        notes = result["notes"]
        blocks += _shown(result)
        blocks += [f"* {note}" for note in notes]
        blocks += [f"* {machine['device']}, {machine['processor']}, torch {machine['torch']}.", ""]
        for ablation in result["ablations"]:
            blocks += [f"With {', '.join(ablation['changes'])}:", "", *_shown(ablation)]
            blocks += [*(f"* {note}" for note in ablation["notes"] if note not in notes), ""]
    return "\n".join(blocks[:-1])


def _shown(result: dict[str, Any]) -> list[str]:
    """The accuracies, and what there was before finetuning."""
    tables = (_filled(result["table"]), [result["pretext"]], _filled(result["learned"]))
    return [line for lines in tables for line in (*lines, "")]


def _filled(table: dict[str, Any]) -> list[str]:
    """The lines of a Markdown table, without columns that are empty."""
    used = [i for i in range(len(table["head"])) if any(row[i] for row in table["rows"])]
    rows = [table["head"], ["---"] * len(table["head"]), *table["rows"]]
    return [f"| {' | '.join(row[i] for i in used)} |" for row in rows]


def shortcut(results: list[dict[str, Any]]) -> str:
    """How often networks of several crops are right, by how the same images are cropped."""
    if not results:
        return "*Not measured yet: `benchmarks/shortcut.py`.*"
    lines: list[str] = []
    for row in results[0]["results"]:
        shares = [f"{value:.1%}" for value in row["accuracy"].values()]
        if not lines:
            lines += [
                f"| right, chance {row['chance']:.0%}; pretrained with | step "
                f"| {' | '.join(row['accuracy'])} |",
                f"| {' | '.join(['---'] * (2 + len(shares)))} |",
            ]
        step = f"{row['step']:,} of {row['of_steps']:,}"
        lines.append(f"| {' | '.join([row['crop'], step, *shares])} |")
    return "\n".join(lines)


def reliability(results: list[dict[str, Any]]) -> str:
    """What the campaign of faults did, and what was lost."""
    if not results:
        return "*Not run yet: `benchmarks/reliability.py`.*"
    result = results[0]
    parts = {name: part for name, part in result["parts"].items() if name in _OUTCOMES}
    lines = ["| fault | how many | outcome | lost |", "| --- | --- | --- | --- |"]
    for name, part in parts.items():
        cells = [part["what"], str(part["made"]), _OUTCOMES[name](part), str(len(part["lost"]))]
        lines.append(f"| {' | '.join(cells)} |")
    machine = result["environment"]
    lines += [
        "",
        f"Seed {result['seed']}, {machine['processor']}, {machine['cores']} cores, torch "
        f"{machine['torch']}: `benchmarks/reliability.py`.",
    ]
    if "paper" in result["parts"]:
        lines += ["", *_many_ranks(result["parts"]["paper"])]
    return "\n".join(lines)


def _many_ranks(paper: dict[str, Any]) -> list[str]:
    lines = [
        "| GPUs, on paper | all-reduce, bf16 (float32) | of it not hidden by the backward pass | "
        "of one GPU's rate, each | start | a save, of a step's time | waiting for the slowest, if "
        "steps spread as on this shared CPU |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in paper["ranks"]:
        half, whole = row["bf16"], row["float32"]
        cells = [
            f"{row['ranks']}, {row['link']}",
            f"{half['all_reduce_ms']:.1f} ({whole['all_reduce_ms']:.1f}) ms",
            f"{half['exposed_ms']:.1f} ({whole['exposed_ms']:.1f}) ms",
            f"{half['efficiency']:.0%} ({whole['efficiency']:.0%})", f"{row['start_s']:.0f} s",
            f"{half['checkpoint_share']:.2%}", f"{row['waiting_ms']:.0f} ms",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    inputs = paper["inputs"]
    return [
        *lines,
        "",
        f"Estimated, not measured: in224 with {inputs['images_a_gpu']} images a step on an H100 "
        f"({inputs['step_s'] * 1e3:.0f} ms by `--plan`), 25 M gradients in a ring, in bf16 by "
        "`runtime.bf16_gradients` (as they are by default).",
        "Formula and inputs are in the result.",
    ]


def _memory(part: dict[str, Any]) -> str:
    ways = (("run through", part["run_through"]), ("left early", part["left_early"]))
    return "; ".join(
        f"{name}: memory {found['growth']:+.1%}, {found['threads'][-1]} threads"
        for name, found in ways
    )


# What became of a part of the campaign, in words.
_OUTCOMES: dict[str, Callable[[dict[str, Any]], str]] = {
    "kills": lambda p: f"{p['runs']} runs ended with the uninterrupted run's weights and losses",
    "prepare": lambda p: f"{p['runs']} files made in the end, byte for byte the same",
    "checkpoints": lambda p: (
        f"{p['recovered']} times a good one loaded, {p['refused']} refused, "
        f"{p['loaded_bad']} bad ones loaded"
    ),
    "terms": lambda p: f"all left, the slowest in {p['slowest_s']:.1f} s, and resumed exactly",
    "ranks": lambda p: f"{p['runs']} runs restarted by torchrun ended with the right weights",
    "images": lambda p: (
        f"skip: {p['counted']:,} counted of {p['drawn']:,} drawn; raise: the first one named"
    ),
    "memory": _memory,
    "saving": lambda p: f"a save is at most {p['bound']:.2%} of the steps between two",
}


def _conditions(result: dict[str, Any]) -> str:
    machine, protocol = result["environment"], result["protocol"]
    ours = next(iter(protocol["loaders"].values()))
    peers = ", ".join(
        f"{name} {version}"
        for name, version in machine["peers"].items()
        if name.startswith(("ffcv", "nvidia-dali", "pillow"))
    )
    return (
        f"{machine['processor']}, {ours['threads']} threads each; median (min to max) of "
        f"{protocol['rounds']} rounds of {protocol['seconds_a_round']:g} s; {peers}. "
        "How: [benchmarks/README.md](benchmarks/README.md)."
    )


def _read(name: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return result


def _there(*names: str) -> list[dict[str, Any]]:
    return [_read(name) for name in names if (RESULTS / f"{name}.json").exists()]


def _throughput() -> dict[str, dict[str, Any]]:
    there = [n for n in _THROUGHPUT if (RESULTS / f"throughput-{n}.json").exists()]
    return {name: _read(f"throughput-{name}") for name in there}


TABLES: dict[str, Callable[[], str]] = {
    "quickstart": lambda: quickstart(_read("quickstart")),
    "throughput": lambda: throughput(_throughput()),
    "loaders": lambda: loaders(_throughput()),
    "conversion": lambda: conversion(next(iter(_there("conversion")), None)),
    "step": lambda: step(_there("step-cifar10", "step-in224")),
    "beside": lambda: beside(_there(*(f"step-beside-{isa}" for isa in ISAS))),
    "kernels": lambda: kernels(_read("kernels")),
    "reliability": lambda: reliability(_there("reliability")),
    "shortcut": lambda: shortcut(_there("shortcut")),
    "reproduce": lambda: reproduce(
        [_read(path.stem) for path in sorted(RESULTS.glob("reproduce*.json"))]
    ),
}


def rendered(text: str) -> str:
    """`text` with every marked block made anew from its result files."""
    for name, table in TABLES.items():
        opening, closing = f"<!-- {name} -->", f"<!-- /{name} -->"
        head, found, rest = text.partition(opening)
        _, closed, tail = rest.partition(closing)
        if not found or not closed:
            raise SystemExit(f"README.md: the markers {opening} and {closing} are not there")
        text = f"{head}{opening}\n{table()}\n{closing}{tail}"
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
