"""Labels of sets that number their classes and do not name them."""

from __future__ import annotations

from fastselfie.data.random import IntArray
from fastselfie.errors import UserError

_MOST_CLASSES = 1 << 24


def numbered_classes(labels: IntArray, where: object) -> list[str]:
    """Return the names of classes that only have numbers: "0", "1" and so on.

    Args:
        labels: (n,) integers, n > 0.
        where: the file or the folder, for messages.

    Raises:
        UserError: a label below 0, or one too large for the number of a class.
    """
    least, most = int(labels.min()), int(labels.max())
    if least < 0:
        raise UserError(f"{where}: a label is {least}: number the classes from 0 up")
    if most >= _MOST_CLASSES:
        raise UserError(
            f"{where}: its label {most} is too large for the number of a class: number the classes "
            "from 0 up"
        )
    return [str(i) for i in range(most + 1)]
