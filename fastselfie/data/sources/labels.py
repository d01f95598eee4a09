"""Class names for datasets that only number their classes."""

from __future__ import annotations

from fastselfie.data.draws import IntArray
from fastselfie.errors import UserError

_MOST_CLASSES = 1 << 24


def numbered_classes(labels: IntArray, where: object) -> list[str]:
    """Return the class names "0", "1", ... up to the largest label.

    Args:
        labels: (n,) integers, n > 0.
        where: The file or folder, for messages.

    Raises:
        UserError: A label is negative or too large for a class number.
    """
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0:
        raise UserError(f"{where}: a label is {lowest}: number the classes from 0 up")
    if highest >= _MOST_CLASSES:
        raise UserError(
            f"{where}: its label {highest} is too large for a class number: number the classes "
            "from 0 up"
        )
    return [str(i) for i in range(highest + 1)]
