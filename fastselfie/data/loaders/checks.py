"""Checks of single arguments; what is wrong is an error that names the argument."""

from __future__ import annotations

import operator
from typing import SupportsIndex


def require_whole(name: str, value: SupportsIndex, least: int, most: int | None = None) -> int:
    """Return `value` as an int in [least, most].

    Raises:
        TypeError: It is no whole number.
        ValueError: It is outside of the range.
    """
    try:
        found = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is {value!r}: it must be a whole number") from None
    if isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}: it must be a whole number")
    if found < least:
        raise ValueError(f"{name} is {found}: it must be at least {least}")
    if most is not None and found > most:
        raise ValueError(f"{name} is {found}: it must be at most {most}")
    return found


def require_numbers(name: str, values: object, count: int) -> tuple[float, ...]:
    """Return `values` as `count` floats.

    Raises:
        TypeError: It is no sequence of numbers.
        ValueError: It has another length.
    """
    try:
        found = tuple(float(value) for value in values)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        raise TypeError(f"{name} is {values!r}: it must be {count} numbers") from None
    if len(found) != count:
        raise ValueError(f"{name} is {values!r}: it must be {count} numbers")
    return found
