"""Table of the fault campaign, from its result file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from support.markdown import machine, table


def reliability(result: dict[str, Any]) -> str:
    """What each part of the fault campaign did, and how many runs it lost."""
    rows = [
        [part["what"], str(part["made"]), _OUTCOMES[name](part), str(len(part["lost"]))]
        for name, part in result["parts"].items()
        if name in _OUTCOMES
    ]
    environment = result["environment"]
    others = [
        f"On {part['processor']}: {part['what']}."
        for part in result["parts"].values()
        if part.get("processor", environment["processor"]) != environment["processor"]
    ]
    return "\n".join([
        *table(["fault", "how many", "outcome", "lost"], rows),
        "",
        f"Seed {result['seed']}, {environment['cores']} cores, {machine(environment)}: "
        "`benchmarks/reliability.py`." + "".join(f" {other}" for other in others),
    ])  # fmt: skip


def scaling(paper: dict[str, Any]) -> str:
    """The estimate of many GPUs: communication, start, checkpoints."""
    rows = []
    for row in paper["ranks"]:
        half, whole = row["bf16"], row["float32"]
        rows.append([
            f"{row['ranks']}, {row['link']}",
            f"{half['all_reduce_ms']:.1f} ({whole['all_reduce_ms']:.1f}) ms",
            f"{half['exposed_ms']:.1f} ({whole['exposed_ms']:.1f}) ms",
            f"{half['efficiency']:.0%} ({whole['efficiency']:.0%})",
            f"{row['start_s']:.0f} s", f"{half['checkpoint_share']:.2%}",
            f"{row['waiting_ms']:.0f} ms",
        ])  # fmt: skip
    head = ["GPUs", "all-reduce, bf16 (float32)", "not hidden by the backward pass",
            "rate of each GPU", "start", "share of a save", "waiting for the slowest"]  # fmt: skip
    inputs = paper["inputs"]
    return "\n".join([
        *table(head, rows),
        "",
        f"Inputs: in224 with {inputs['images_a_gpu']} images a step on an H100 "
        f"({inputs['step_s'] * 1e3:.0f} ms by `--plan`), 25 M gradients in a ring.",
    ])  # fmt: skip


def _memory(part: dict[str, Any]) -> str:
    ways = (("run through", part["run_through"]), ("left early", part["left_early"]))
    return "; ".join(
        f"{name}: memory {found['growth']:+.1%}, {found['threads'][-1]} threads"
        for name, found in ways
    )


_OUTCOMES: dict[str, Callable[[dict[str, Any]], str]] = {
    "kills": lambda p: f"{p['runs']} runs ended with the uninterrupted run's weights and losses",
    "prepare": lambda p: f"{p['runs']} files made in the end, byte for byte the same",
    "checkpoints": lambda p: (
        f"{p['recovered']} times a good one loaded, {p['refused']} refused, "
        f"{p['loaded_bad']} bad ones loaded"
    ),
    "terms": lambda p: f"all left, the slowest in {p['slowest_s']:.1f} s, and resumed exactly",
    "ranks": lambda p: f"{p['runs']} runs restarted by torchrun ended with the right weights",
    "ray": lambda p: (
        f"{p['nodes']} nodes, {p['workers']} workers, {p['commands']} commands: {p['runs']} tables "
        "as of one machine, no trial trained twice"
    ),
    "ray_prepare": lambda p: f"{p['runs']} files made in the end, byte for byte the same",
    "images": lambda p: (
        f"skip: {p['counted']:,} counted of {p['drawn']:,} drawn; raise: the first one named"
    ),
    "memory": _memory,
    "saving": lambda p: f"a save is at most {p['bound']:.2%} of the steps between two",
}
