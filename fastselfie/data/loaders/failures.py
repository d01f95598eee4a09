"""What happens to images that cannot be decoded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastselfie.data.draws import IntArray
from fastselfie.data.loaders.checks import require_whole
from fastselfie.errors import UserError

# Rows of a batch that could not be decoded, each with a line that names the image and the reason.
Failures = Sequence[tuple[int, str]]


class FailurePolicy:
    """Stops at a failure or puts another image in its place, and counts.

    A batch keeps its size, which compiled steps and other processes count on.

    Args:
        on_error: `raise` or `skip`.
        limit: With `skip`, how many images in a row may fail. A disk that is gone is not a bad
            image.

    Raises:
        ValueError, TypeError: An argument is not as described here.
    """

    def __init__(self, on_error: str = "raise", limit: int = 100) -> None:
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error is {on_error!r}: it must be raise or skip")
        self.on_error = on_error
        self.limit = require_whole("max_skipped_in_a_row", limit, 1)
        self.skipped = 0
        self._in_a_row = 0
        self._first = ""  # what failed first among those in a row

    def rows(self, count: int, failures: Failures) -> IntArray | None:
        """The row that stands in each place: its own, or the next good one.

        Returns:
            (count,) int64; empty if no row is good, None if all are.

        Raises:
            UserError: The first failure, with on_error raise; or as many in a row as `limit`, also
                over the ends of batches.
        """
        if not failures:
            self._in_a_row = 0
            return None
        if self.on_error == "raise":
            raise UserError(failures[0][1])
        failed = dict(failures)
        for row in range(count):
            self._in_a_row = self._in_a_row + 1 if row in failed else 0
            if self._in_a_row == 1:
                self._first = failed[row]
            if self._in_a_row == self.limit:
                raise UserError(
                    f"{self._first}: the first of {self.limit} images in a row that cannot be "
                    "decoded: see to the disk, or raise max_skipped_in_a_row"
                )
        self.skipped += len(failed)
        rows = np.arange(count, dtype=np.int64)
        bad, good = np.asarray(list(failed)), np.setdiff1d(rows, list(failed))
        if len(good) == 0:
            return good
        rows[bad] = good[np.searchsorted(good, bad) % len(good)]
        return rows
