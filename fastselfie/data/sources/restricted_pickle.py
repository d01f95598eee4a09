"""Pickled arrays, read without running what else a pickle may hold."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any


def load_arrays(path: Path) -> dict[str, Any]:
    """The dictionary of arrays, lists and numbers pickled in a file, by Python 2 or 3.

    Raises nearly anything for a file that is none.
    """
    batch = _ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    return {k.decode() if isinstance(k, bytes) else k: v for k, v in batch.items()}


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles numpy arrays and plain containers, and refuses to name anything else.

    A pickle runs whatever callable it names, so a data file is not to be trusted with one.
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
