"""The table of what a training step moves in memory, from its result file."""

from __future__ import annotations

from typing import Any

from support.markdown import table
from support.traffic_groups import FORMS, GROUPS, READ_AGAIN

_DIRECTIONS = ("forward", "backward")


def traffic(result: dict[str, Any]) -> str:
    """MB an image of each group of kernels, forward + backward, for each form of the step."""
    batches = sorted({row["batch"] for row in result["rows"]})
    found = {(row["form"], row["batch"]): row for row in result["rows"]}
    first = [found[form, batches[0]] for form in FORMS]
    rows = [[group, *(_cell(row, group) for row in first)] for group in GROUPS]
    for direction in _DIRECTIONS:
        rows.append([f"all, {direction}", *(f"{_megabytes(row, direction):.1f}" for row in first)])
    rows.append(["**the step**", *(f"**{_total(row):.1f}**" for row in first)])
    head = [f"{result['config']}, {batches[0]} images a step: MB an image, forward + backward",
            *FORMS]  # fmt: skip
    peaks = [f"{row['peak_bytes'] / 2**30:.1f}" for row in first]
    notes = [
        f"With {batches[0]} images the last form moves {_ratio(first):.3f} of what torch.compile "
        f"alone moves. If the gradients of convolutions counted once, it would be "
        f"{_ratio(first, READ_AGAIN):.3f}.",
        *(
            f"With {batch} images it is {_ratio(rest):.3f}: "
            f"{', '.join(f'{_total(row):.1f}' for row in rest)} MB an image."
            for batch in batches[1:]
            for rest in [[found[form, batch] for form in FORMS]]
        ),
        f"Peak memory of the step's tensors with {batches[0]} images: {', '.join(peaks)} GiB. The "
        f"trainer estimates {first[0]['estimated_bytes'] / 2**30:.1f} GiB.",
    ]
    return "\n".join([*table(head, rows), "", " ".join(notes)])


def _cell(row: dict[str, Any], group: str) -> str:
    """Bytes of a group in both directions; those of the optimizer alone are of neither."""
    parts = [row["bytes"][direction].get(group, 0) for direction in (*_DIRECTIONS, "optimizer")]
    shown = parts[2:] if parts[2] else parts[:2]
    return " + ".join(f"{part / row['batch'] / 1e6:.1f}" for part in shown)


def _megabytes(row: dict[str, Any], direction: str) -> float:
    return float(sum(row["bytes"][direction].values()) / row["batch"] / 1e6)


def _total(row: dict[str, Any], without: str | None = None) -> float:
    every = sum(_megabytes(row, direction) for direction in row["bytes"])
    left_out = sum(row["bytes"][direction].get(without, 0) for direction in row["bytes"])
    return every - float(left_out / row["batch"] / 1e6)


def _ratio(rows: list[dict[str, Any]], without: str | None = None) -> float:
    return _total(rows[2], without) / _total(rows[1], without)
