"""Tables of decode.py, in the terminal and for the docs."""

from __future__ import annotations

from typing import Any

from support.markdown import median, table

_NAMES = {"opencv": "OpenCV", "pillow": "Pillow", "torchvision": "torchvision.io"}
_INPUTS = {"originals": "The photographs as they are", "transcoded": "The same, transcoded"}


def decode(results: list[dict[str, Any]]) -> str:
    """Images/s of every decoder, one thread and in a DataLoader, for each input and machine."""
    parts = []
    for result in results:
        for name, title in _INPUTS.items():
            parts += ["\n".join(table(*_rows(result, name, title)))]
        parts.append(_conditions(result))
    return "\n\n".join(parts) or "Not measured yet."


def print_decode_tables(result: dict[str, Any]) -> None:
    """Print a table for each input, and the decoders that were left out."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.width = max(console.width, 140)  # a log keeps the numbers whole
    for name, title in _INPUTS.items():
        head, rows = _rows(result, name, title)
        shown = Table(*head)
        for row in rows:
            shown.add_row(*row)
        console.print(shown)
    for name, problem in result["left_out"].items():
        console.print(f"left out: {name}: {problem}", markup=False)


def _rows(result: dict[str, Any], name: str, title: str) -> tuple[list[str], list[list[str]]]:
    found = [m for m in result["measurements"] if m["input"] == name]
    head = [title]
    for one in found:
        where = f"DataLoader, {one['workers']} workers: images/s"
        head += ["images a CPU second" if one["workers"] is None else where, "times simplejpeg"]
    rows = []
    for k, row in enumerate(found[0]["results"]):
        cells = [_NAMES.get(row["decoder"], row["decoder"])]
        for one in found:
            ratio = one["ratios"].get(f"{row['decoder']}/simplejpeg")
            cells.append(median(one["results"][k]["images_per_s"], ",.0f"))
            cells.append(median(ratio, ".2f") if ratio else "")
        rows.append(cells)
    return head, rows


def _conditions(result: dict[str, Any]) -> str:
    environment, protocol, files = result["environment"], result["protocol"], result["files"]
    packages = {k: v for found in result["versions"].values() for k, v in found.items()}
    packages = {k: v for k, v in packages.items() if k not in ("fastselfie", "torch")}
    versions = ", ".join(f"{name} {version}" for name, version in packages.items())
    missing = f" Left out: {', '.join(result['left_out'])}." if result["left_out"] else ""
    return (
        f"{environment['processor']}; {files['photographs']} photographs of "
        f"{files['megapixels'] / files['photographs']:.2f} megapixels on average; median (min to "
        f"max) of {protocol['rounds']} alternating rounds of {protocol['seconds_a_round']:g} s; "
        f"{versions}.{missing}"
    )
