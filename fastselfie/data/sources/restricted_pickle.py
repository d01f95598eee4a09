"""Reads pickled arrays without running the other code that a pickle may contain."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any


def load_arrays(path: Path) -> dict[str, Any]:
    """Load the pickled dictionary of arrays, lists and numbers in a file of Python 2 or 3.

    Raises:
        Exception: The file is no such pickle. The type can be nearly any.
    """
    batch = _ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    return {k.decode() if isinstance(k, bytes) else k: v for k, v in batch.items()}


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles NumPy arrays and plain containers, and refuses everything else.

    A pickle runs any callable that it names, so a data file must not choose freely.
    """

    _ALLOWED = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy.core.numeric", "_frombuffer"),  # from protocol 5 on
            ("numpy._core.numeric", "_frombuffer"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),  # how Python 3 writes bytes in protocol 2
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which a batch never does")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)
