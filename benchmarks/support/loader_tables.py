"""Tables of the loaders and of the conversion, from their result files."""

from __future__ import annotations

from typing import Any

from support.markdown import machine, median, table

_NAMES = {
    "native": "native", "resident": "resident", "ffcv": "FFCV", "ffcv-shared": "FFCV, our file",
    "ffcv-raw": "FFCV", "dali-cpu": "DALI", "folder": "torch + Pillow",
    "simplejpeg": "torch + simplejpeg", "torchvision": "torch + torchvision", "spdl": "SPDL",
    "webdataset": "WebDataset",
}  # fmt: skip
_PEERS = (("ffcv", "ffcv-raw"), ("dali-cpu",), ("folder",))


def speed(result: dict[str, Any]) -> str:
    """Images/s of every loader, and how many times as fast the native loader is."""
    ours = result["results"][0]["loader"]
    rows = []
    for row in result["results"]:
        ratio = result["ratios"].get(f"{ours}/{row['loader']}")
        rows.append([_NAMES[row["loader"]], median(row["images_per_s"], ",.0f"),
                     median(ratio, ".1f") + " times" if ratio else ""])  # fmt: skip
    lines = table(["loader", "images/s", "native is faster by"], rows)
    return "\n".join([*lines, "", _conditions(result)])


def throughput(results: list[dict[str, Any]]) -> str:
    """Images/s of our loader for each kind of image, and its ratio to each peer."""
    rows = []
    for result in results:
        ours, ratios = result["results"][0], result["ratios"]
        row = [result["protocol"]["title"], median(ours["images_per_s"], ",.0f")]
        for names in _PEERS:
            found = [ratios[key] for name in names if (key := f"{ours['loader']}/{name}") in ratios]
            row.append(median(found[0], ".2f") if found else "")
        rows.append(row)
    head = ["images", "ours, images/s", "times FFCV", "times DALI CPU", "times torch + Pillow"]
    return "\n".join([*table(head, rows), "", _conditions(results[0])])


def overhead(result: dict[str, Any]) -> str:
    """Images/s of `Loader`, and of the C++ engine driven by hand."""
    names = {"native": "`Loader`", "decoder": "`BatchDecoder`, driven by hand"}
    rows = [
        [
            names[row["loader"]],
            median(row["images_per_s"], ",.0f"),
            f"{row['cpu_ms_per_image']:.3f}",
        ]
        for row in result["results"]
    ]
    ratio = median(result["ratios"]["native/decoder"], ".3f")
    said = f"`Loader` has {ratio} of the rate by hand. {_conditions(result)}"
    return "\n".join([*table(["loader", "images/s", "CPU ms an image"], rows), "", said])


def loaders(result: dict[str, Any]) -> str:
    """Speed, CPU time, memory and bytes read of every loader, for one kind of image."""
    head = [
        result["protocol"]["title"],
        "images/s",
        "CPU ms an image",
        "peak MB",
        "MB read an image",
    ]
    rows = []
    for row in result["results"]:
        read = row["mb_read_per_image"]
        rows.append([_NAMES[row["loader"]], median(row["images_per_s"], ",.0f"),
                     f"{row['cpu_ms_per_image']:.2f}", f"{row['peak_rss_mb']:,.0f}",
                     f"{read:.3f}" if read else ""])  # fmt: skip
    return "\n".join([*table(head, rows), *_end_to_end(result.get("end_to_end"))])


def _end_to_end(both: dict[str, Any] | None) -> list[str]:
    """The rates of loader and step together, unless the rounds of the step differ too much."""
    if both is None or both["step"]["max"] >= 1.5 * both["step"]["min"]:
        return []  # other programs disturbed the measurement
    rates = {name: f"{both[name]['median']:,.0f}" for name in ("loader", "step", "e2e")}
    share = both["e2e_share_of_binding"]
    return [
        "",
        f"Training with `configs/{both['config']}.yaml` from the same file: the loader alone gives "
        f"{rates['loader']} images/s, the step alone {rates['step']}, both together on the same "
        f"cores {rates['e2e']}. The {both['binding']} is the bottleneck. The rate of both is "
        f"{share['median']:.0%} ({share['min']:.0%} to {share['max']:.0%}) of what the "
        f"{both['binding']} gives on the cores that decoding leaves free. Waiting for data takes "
        f"{both['waiting']['median']:.1%} of a step.",
    ]


def _conditions(result: dict[str, Any]) -> str:
    environment, protocol = result["environment"], result["protocol"]
    ours = next(iter(protocol["loaders"].values()))
    peers = ", ".join(
        f"{name} {version}"
        for name, version in environment["peers"].items()
        if name.startswith(("ffcv", "nvidia-dali", "pillow"))
    )
    return (
        f"{environment['processor']}, {ours['threads']} threads each; median (min to max) of "
        f"{protocol['rounds']} rounds of {protocol['seconds_a_round']:g} s; {peers}."
    )


def conversion(result: dict[str, Any]) -> str:
    """Images per CPU second of `fastselfie prepare` and of FFCV's writer."""
    rows = []
    for row in result["results"]:
        rates = [median(row["images_per_cpu_s"][name], ".0f") for name in ("ours", "ffcv")]
        rows.append([row["conversion"], *rates, median(row["ratio"], ".2f")])
    head = ["conversion, images a CPU second", "ours", "FFCV's writer", "ratio"]
    return "\n".join(table(head, rows))


def dataset_size(result: dict[str, Any]) -> str:
    """What a dataset of many samples takes to open, and between epochs."""
    names = {
        "open_s": ("open the file, s", ".2f"),
        "first_batch_s": ("first batch, s", ".2f"),
        "next_epoch_s": ("first batch of the next epoch, s", ".2f"),
        "open_mb": ("private memory of the open dataset, MB", ".0f"),
        "all_mb": ("private memory of the process, MB", ".0f"),
    }
    figures = result["figures"]
    rows = [[title, median(figures[name], form)] for name, (title, form) in names.items()]
    head = [f"{result['samples']:,} samples, a file of {result['file_mb']:,.0f} MB", "result"]
    environment = result["environment"]
    note = f"{machine(environment)}; median (min to max) of {result['rounds']} processes."
    return "\n".join([*table(head, rows), "", note])


def remote(result: dict[str, Any]) -> str:
    """Conversion from a server beside conversion from local files."""
    rates = {name: median(found, ".0f") for name, found in result["images_per_s"].items()}
    head = ["one worker, images/s", "local files", "a server", "ratio"]
    row = [f"{result['images']:,} photographs", rates["local"], rates["remote"],
           median(result["ratio"], ".2f")]  # fmt: skip
    note = (
        f"{result['broken']} of {result['requests']:,} connections broke. Finding the images in "
        f"the tar files is included. {machine(result['environment'])}; "
        f"{result['rounds']} rounds."
    )
    return "\n".join([*table(head, [row]), "", note])
