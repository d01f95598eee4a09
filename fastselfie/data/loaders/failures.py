"""What happens to images that cannot be decoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fastselfie.data.draws import IntArray
from fastselfie.data.loaders.checks import require_whole
from fastselfie.errors import UserError

# Rows of a batch that could not be decoded, each with a line that names the image and the reason.
Failures = Sequence[tuple[int, str]]


class FailurePolicy:
    """Stops at a failure or puts another image of the batch in its place, and counts.

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
        require_whole("max_skipped_in_a_row", limit, 1)
        self.on_error = on_error
        self.limit = limit
        self.skipped = 0
        self._in_a_row: list[str] = []

    def rows(self, count: int, failures: Failures) -> IntArray | None:
        """The row that stands in each place: its own, or the next good one. None: all are good.

        Raises:
            UserError: The first failure, with on_error raise or where no image is good; or more
                failures in a row than `limit`.
        """
        if not failures:
            self._in_a_row.clear()
            return None
        failed = np.asarray([row for row, _ in failures], dtype=np.int64)
        if self.on_error == "raise":
            raise UserError(failures[0][1])
        if len(failed) == count:
            raise UserError(f"{failures[0][1]} (no image in its batch of {count} can replace it)")
        self._count_in_a_row(count, dict(failures))
        rows = np.arange(count, dtype=np.int64)
        good = np.setdiff1d(rows, failed)
        rows[failed] = good[np.searchsorted(good, failed) % len(good)]
        self.skipped += len(failed)
        return rows

    def _count_in_a_row(self, count: int, failures: Mapping[int, str]) -> None:
        """Refuse a run of failures that is too long, also over the ends of batches."""
        for row in range(count):
            if row not in failures:
                self._in_a_row.clear()
                continue
            self._in_a_row.append(failures[row])
            if len(self._in_a_row) == self.limit:
                raise UserError(
                    f"{self._in_a_row[0]}: the first of {self.limit} images in a row that cannot "
                    "be decoded: see to the disk, or raise data.max_skipped_in_a_row"
                )
