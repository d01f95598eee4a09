"""python -m helpers.fake_cuda HOOKS CASE...    # JSON: what each case raised, or null"""

from __future__ import annotations

import ctypes
import json
import sys


def main(hooks: str, names: list[str]) -> None:
    ctypes.CDLL(hooks, mode=ctypes.RTLD_GLOBAL)  # before torch is imported
    from helpers.fake_cuda.cases import CASES
    from helpers.fake_cuda.device import fake_gpu

    found: dict[str, str | None] = dict.fromkeys(names)
    for name in names:
        try:
            with fake_gpu() as waits:
                CASES[name](waits=waits)
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
