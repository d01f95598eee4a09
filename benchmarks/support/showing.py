"""Show a result of throughput.py or step.py in the terminal, and plot it."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def print_table(result: dict[str, Any]) -> None:
    """Print the figures of every loader, and its ratio to the first."""
    from rich.console import Console
    from rich.table import Table

    table = Table("loader", "images/s", "min to max", "CPU ms", "peak MB", "PSS MB", "ratio",
                  "min to max", "CPU ratio")  # fmt: skip
    first = result["results"][0]["loader"]
    for row in result["results"]:
        name, rates = row["loader"], row["images_per_s"]
        ratio = result["ratios"].get(f"{first}/{name}")
        cpu = result["cpu_ratios"].get(f"{name}/{first}")
        table.add_row(
            name, f"{rates['median']:,.0f}", f"{rates['min']:,.0f} to {rates['max']:,.0f}",
            f"{row['cpu_ms_per_image']:.3g}", f"{row['peak_rss_mb']:,.0f}", f"{row['pss_mb']:,.0f}",
            f"{ratio['median']:.2f}" if ratio else "",
            f"{ratio['min']:.2f} to {ratio['max']:.2f}" if ratio else "",
            f"{cpu['median']:.2f}" if cpu else "",
        )  # fmt: skip
    console = Console()
    console.width = max(console.width, 110)  # a log keeps the numbers whole
    console.print(table)
    if "end_to_end" in result:
        both = result["end_to_end"]
        rates = {name: f"{both[name]['median']:,.0f}" for name in ("loader", "step", "e2e")}
        console.print(
            f"{both['config']}, images/s: {rates}; the {both['binding']} is the bottleneck"
        )


def plot(result: dict[str, Any], path: Path) -> None:
    """Plot bars of the medians with whiskers from min to max."""
    from matplotlib.figure import Figure

    rows = result["results"][::-1]
    rates = [row["images_per_s"] for row in rows]
    middle = [r["median"] for r in rates]
    errors = [[r["median"] - r["min"] for r in rates], [r["max"] - r["median"] for r in rates]]
    figure = Figure(figsize=(8, 1.4 + 0.45 * len(rows)), layout="constrained")
    axes = figure.subplots()
    # Blue and orange of Okabe and Ito: distinct for the colour-blind, and in gray.
    ours = [row["loader"] in ("native", "resident") for row in rows]
    colours = ["#0072B2" if mine else "#E69F00" for mine in ours]
    bars = axes.barh([row["loader"] for row in rows], middle, xerr=errors, color=colours, capsize=3)
    axes.bar_label(bars, [f"{v:,.0f}" for v in middle], padding=6)
    axes.set_xlabel("images a second: median, whiskers from the slowest to the fastest round")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.15)
    machine, spec = result["environment"], next(iter(result["protocol"]["loaders"].values()))
    title = result["protocol"]["title"] or f"{Path(spec['data']).name}, {spec['size']} px"
    axes.set_title(
        f"{title}\n{spec['threads']} threads, batches of {spec['batch']}, {machine['processor']}",
        fontsize=10,
        loc="left",
    )
    figure.savefig(path, dpi=120)


def print_step_table(result: dict[str, Any]) -> None:
    """Print the figures of every step, and how many times as fast the first one is."""
    from rich.console import Console
    from rich.table import Table

    table = Table("step", "images/s", "min to max", "CPU ms", "peak MB", "GFLOP/s",
                  f"{result['results'][0]['step']} is", "min to max")  # fmt: skip
    for row in result["results"]:
        name, rates = row["step"], row["images_per_s"]
        ratio = result["ratios"].get(f"{result['results'][0]['step']}/{name}")
        table.add_row(
            name, f"{rates['median']:.4g}", f"{rates['min']:.4g} to {rates['max']:.4g}",
            f"{row['cpu_ms_per_image']:.4g}", f"{row['peak_rss_mb']:,.0f}",
            f"{row['model_gflops_per_s']['median']:,.0f}",
            f"{ratio['median']:.2f}" if ratio else "",
            f"{ratio['min']:.2f} to {ratio['max']:.2f}" if ratio else "",
        )  # fmt: skip
    console = Console()
    console.width = max(console.width, 110)
    console.print(table)
    losses = ", ".join(f"{name} {loss:.6f}" for name, loss in result["losses"].items())
    console.print(f"loss of one batch: {losses}; a matmul here: "
                  f"{result['matmul_gflops_per_s']:,.0f} GFLOP/s")  # fmt: skip
