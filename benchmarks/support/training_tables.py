"""Tables of what networks learned, from their result files."""

from __future__ import annotations

from statistics import mean, stdev
from typing import Any

from fastselfie.reproduce.statistics import paired_difference
from support.markdown import machine, median, table


def quickstart(result: dict[str, Any]) -> str:
    """The figures of one `make quickstart`."""
    figures, environment = result["figures"], result["environment"]
    rows = [
        ("pretext accuracy, held-out images", f"{figures['pretext_accuracy']:.1%}",
         f"chance {result['chance']:.0%}"),
        ("finetuned, top-1", f"{figures['finetuned_accuracy']:.1%}",
         f"{result['labels']:.0%} of the labels, one run"),
        ("supervised from scratch, top-1", f"{figures['supervised_accuracy']:.1%}",
         "the same network, steps and labels"),
        ("pretraining", f"{figures['images_per_s']:,.0f} images/s",
         f"{environment['threads']} threads, {machine(environment)}"),
        ("total time", f"{figures['seconds']:,.0f} s", ""),
    ]  # fmt: skip
    return "\n".join(table(["`make quickstart`", "result", "conditions"], rows))


def accuracy(result: dict[str, Any]) -> str:
    """Accuracy of the control, the paper's form and the recipe, by the share of labels."""
    rows = []
    for paper, recipe in zip(result["main"]["rows"], _recipe(result)["rows"], strict=True):
        supervised, ours = paper["supervised"]["top1"], recipe["finetuned"]["top1"]
        theirs = paper["finetuned"]["top1"]
        rows.append([
            f"{paper['labels']:g}%", f"{paper['images']:,}", str(paper["n"]),
            *map(percents, (supervised, theirs, ours)),
            *(gain(paired_difference(ours, other)) for other in (supervised, theirs)),
        ])  # fmt: skip
    head = ["labels", "images", "n", "supervised", "paper's form", "with context",
            "gain over supervised (95%)", "over the paper's form (95%)"]  # fmt: skip
    return "\n".join(table(head, rows))


def _recipe(result: dict[str, Any]) -> dict[str, Any]:
    """Return the reproduction with pooled queries."""
    found: dict[str, Any]
    (found,) = (t for t in result["ablations"] if t["config"]["model"]["query"] == "pooled")
    return found


def gain(difference: dict[str, float]) -> str:
    percent = {key: 100 * value for key, value in difference.items()}
    return "{mean:+.1f} ({low:+.1f} to {high:+.1f})".format_map(percent)


def finals(results: list[dict[str, Any]]) -> str:
    """What `accuracy` shows, for each dataset, and what the features gave before finetuning."""
    lines: list[str] = []
    for result in results:
        recipe = _recipe(result)
        lines += [f"**{result['main']['name']}**", "", accuracy(result), ""]
        for name, each in (("Paper's form", result), ("With context", recipe)):
            lines += [f"{name}. {each['pretext']}", "", *_learned(each), ""]
        lines += [f"* With context: {', '.join(recipe['changes'])}."]
        lines += [*(f"* {note}" for note in result["notes"])]
        lines += [f"* {result['environment']['device']}, {machine(result['environment'])}.", ""]
    return "\n".join(lines[:-1])


def accuracy_and_rate(result: dict[str, Any], step: dict[str, Any]) -> str:
    """Accuracy of each arm, beside what its pretraining costs at the rate of its step."""
    main, recipe = result["main"], _recipe(result)
    rates = {row["step"]: row["images_per_s"] for row in step["results"]}
    arms = (("none", "supervised", main, None), ("paper's form", "finetuned", main, "ours"),
            ("with context", "finetuned", recipe, "with context"))  # fmt: skip
    rows = []
    for name, arm, reproduction, contender in arms:
        cost = ["", "0"]
        if contender:
            pretrain, rate = reproduction["config"]["pretrain"], rates[contender]
            seconds = pretrain["steps"] * pretrain["batch_size"] / rate["median"]
            cost = [median(rate, ".0f"), f"{seconds * step['protocol']['threads'] / 3600:.2f}"]
        rows.append([name, *cost, *(percents(row[arm]["top1"]) for row in reproduction["rows"])])
    shares = [f"{row['labels']:g}% of the labels" for row in main["rows"]]
    protocol = step["protocol"]
    note = (
        f"Steps of {step['batch']} images, {protocol['threads']} thread; median (min to max) of "
        f"{protocol['rounds']} alternating rounds. {machine(step['environment'])}."
    )
    head = ["pretraining", "images/s", "core-hours of pretraining", *shares]
    return "\n".join([*table(head, rows), "", note])


def padding(result: dict[str, Any]) -> str:
    """A reproduction and its ablations."""
    notes = result["notes"]
    lines = [*_arms(result), *(f"* {note}" for note in notes)]
    lines += [f"* {result['environment']['device']}, {machine(result['environment'])}.", ""]
    for ablation in result["ablations"]:
        lines += [f"With {', '.join(ablation['changes'])}:", "", *_arms(ablation)]
        lines += [*(f"* {note}" for note in ablation["notes"] if note not in notes), ""]
    return "\n".join(lines[:-1])


def _arms(result: dict[str, Any]) -> list[str]:
    """The accuracies, and what the features gave before finetuning."""
    found = table(result["table"]["head"], result["table"]["rows"])
    return [*found, "", result["pretext"], "", *_learned(result), ""]


def _learned(result: dict[str, Any]) -> list[str]:
    return table(result["learned"]["head"], result["learned"]["rows"])


def shortcut(result: dict[str, Any]) -> str:
    """Pretext accuracy by the crop of the training and the crop of the measurement."""
    rows = [
        [row["crop"], f"{row['step']:,} of {row['of_steps']:,}",
         *(f"{value:.1%}" for value in row["accuracy"].values())]
        for row in result["results"]
    ]  # fmt: skip
    first = result["results"][0]
    head = [f"pretrained with (chance {first['chance']:.0%})", "step", *first["accuracy"]]
    return "\n".join(table(head, rows))


def percents(values: list[float]) -> str:
    """Return a mean in percent, with the standard deviation if there are several values."""
    middle = f"{100 * mean(values):.1f}"
    return f"{middle} +- {100 * stdev(values):.1f}" if len(values) > 1 else middle


def table_cost(result: dict[str, Any]) -> str:
    """Estimated hours of the paper's Table 1."""
    counts = list(result["rows"][0]["hours"])
    head = ["config", "trainings", "GPU-hours", *(f"hours on {int(n):,} GPUs" for n in counts)]
    rows = [
        [row["config"], str(row["trials"] + 1), f"{row['gpu_hours']:,.0f}",
         *(f"{row['hours'][n]:,.1f}" for n in counts)]
        for row in result["rows"]
    ]  # fmt: skip
    return "\n".join(table(head, rows))
