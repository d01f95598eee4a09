"""Tables of the training step and of the fused loss, from their result files."""

from __future__ import annotations

from typing import Any

from support.markdown import machine, median, table


def step(results: list[dict[str, Any]]) -> str:
    """Images/s of a training step, with one switch turned at a time."""
    lines = [line for result in results for line in (*_one_step(result), "")]
    protocol = results[0]["protocol"]
    lines.append(
        f"{machine(results[0]['environment'])}, {protocol['threads']} threads; median "
        f"(min to max) of {protocol['rounds']} alternating rounds of "
        f"{protocol['seconds_a_round']:g} s."
    )
    return "\n".join(lines)


def _one_step(result: dict[str, Any]) -> list[str]:
    ours = result["results"][0]
    rows = []
    for row in result["results"]:
        ratio = result["ratios"].get(f"{ours['step']}/{row['step']}")
        rows.append([row["step"], median(row["images_per_s"], ".1f"),
                     f"{median(ratio, '.2f')} times as fast" if ratio else "",
                     f"{row['peak_rss_mb']:,.0f}",
                     f"{row['flop_utilisation']['median']:.0%}"])  # fmt: skip
    head = [f"{result['config']}, {result['batch']} images a step", "images/s", "ours is",
            "peak MB", "share of matmul FLOP/s"]  # fmt: skip
    losses = ", ".join(f"{name} {loss:.5f}" for name, loss in result["losses"].items())
    notes = [
        f"Ours computes in {result['precision']}, at {ours['model_gflops_per_s']['median']:,.0f} "
        f"GFLOP/s. A large matrix product reaches {result['matmul_gflops_per_s']:,.0f} GFLOP/s. "
        f"Loss of one batch: {losses}."
    ]
    for row in result["results"]:
        if "again_s" in row:
            notes.append(
                f"The first compiled step ends {row['start_s']:.0f} s after the start of the "
                f"process, {row['again_s']:.0f} s at the next start."
            )
    return [*table(head, rows), "", *notes]


def beside(results: list[dict[str, Any]]) -> str:
    """Images/s of a training step beside busy programs, by instruction set."""
    first = results[0]
    protocol, names = first["protocol"], ("ours", "straightforward")
    rows = []
    for result in results:
        rates = {row["step"]: median(row["images_per_s"], ".1f") for row in result["results"]}
        rows.append([result["protocol"]["onednn_max_cpu_isa"], result["precision"],
                     *(rates[name] for name in names),
                     median(result["ratios"]["/".join(names)], ".2f")])  # fmt: skip
    busy = protocol["busy_programs_beside"]
    shortest = min(result["protocol"]["seconds_a_round"] for result in results)
    return "\n".join([
        *table(["oneDNN limited to", "precision of ours", *names, "/".join(names)], rows),
        "",
        f"Images/s of {first['config']}, {first['batch']} images a step, {protocol['threads']} "
        f"threads beside {busy} busy program{'s' if busy > 1 else ''}. "
        f"{machine(first['environment'])}; median (min to max) of {protocol['rounds']} "
        f"alternating rounds of at least {shortest:g} s.",
    ])  # fmt: skip


def kernels(result: dict[str, Any]) -> str:
    """Bytes that the fused losses move, and what their programs compile to."""
    rows = []
    for row in result["traffic"]:
        shape, times = row["shape"], row["times_model"]
        compiled = "; ".join(
            f"{r['target']}: {r['registers']}, {r['spilled_bytes']}"
            for r in result["resources"]
            if r["shape"] == shape["name"]
        )
        kind = "rows + columns" if shape["row_column"] else "one vector a position"
        kind = "pooled queries, float32" if shape["grid"] is None else kind
        rows.append([f"M = {shape['m']}, {kind}",
                     f"{row['model_bytes'] / shape['b'] / 1024:.0f} KiB",
                     f"{times['distinct']:.2f} times",
                     f"{times['launch'] + times['sums']:.2f} times",
                     f"{times['reference']:.1f} times", compiled])  # fmt: skip
    head = ["fused loss, D = 1024, bfloat16", "least bytes an image", "distinct bytes",
            "all bytes read and written", "plain torch", "registers, spilled bytes"]  # fmt: skip
    return "\n".join(table(head, rows))


def norms(result: dict[str, Any]) -> str:
    """How often batch norm with ReLU reads or writes its tensor."""
    rows = []
    for row in result["norms"]:
        norm, passes = row["norm"], row["passes"]
        rows.append([norm["name"] + (", with the sum" if norm["summed"] else ""),
                     f"{norm['channels']} x {norm['side']} x {norm['side']}",
                     f"{passes['forward']:.0f} + {passes['backward']:.0f}",
                     f"{passes['vectors']:.2f}", f"{passes['reference']:.0f}"])  # fmt: skip
    head = ["norm of in224", "C x H x W", "passes, forward + backward",
            "vectors and partial sums besides", "plain torch, each input read once"]  # fmt: skip
    return "\n".join(table(head, rows))


def sweep(result: dict[str, Any]) -> str:
    """What the tiles that `auto` chooses compile to, with each version of Triton."""
    rows = []
    for version, programs in sorted(result["versions"].items()):
        compiled = [numbers for row in programs.values() for numbers in row["targets"].items()]
        registers, spilled, shared = zip(*(numbers for _, numbers in compiled), strict=True)
        targets = dict(compiled)
        rows.append([version, ", ".join(targets), str(len(programs)), str(max(registers)),
                     str(sum(spilled)), f"{max(shared) / 1024:.0f} KiB"])  # fmt: skip
    head = ["Triton", "GPUs", "programs and shapes", "most registers of a thread",
            "spilled bytes", "most shared memory"]  # fmt: skip
    return "\n".join(table(head, rows))
