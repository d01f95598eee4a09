"""The iterator that a Loader gives for each epoch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from typing import Any

from torch import Tensor


class EpochIterator:
    """An iterator over one epoch. The loader holds it weakly: dropping it frees its threads."""

    def __init__(
        self, require_usable: Callable[[], None], batches: Generator[tuple[Any, Tensor]]
    ) -> None:
        self._require_usable = require_usable
        self._batches = batches
        self._lock = threading.RLock()  # close() may come from another thread, or a signal handler
        self._ended = False

    def __iter__(self) -> EpochIterator:
        return self

    def __next__(self) -> tuple[Any, Tensor]:
        with self._lock:
            self._require_usable()
            if self._ended:
                raise RuntimeError(
                    "another iter() of this Loader, or its load_state_dict, ended this epoch"
                )
            return next(self._batches)

    def end(self) -> None:
        """Free what the epoch holds, once the batch that is being made is done."""
        self._ended = True
        with self._lock:
            self._batches.close()
