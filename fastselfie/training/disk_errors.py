"""What a run does when the disk refuses a file: `checkpoint.on_error`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fastselfie.system.console import say


@dataclass
class DiskErrors:
    """Handles every OSError inside its `with` blocks as `checkpoint.on_error` says.

    stop: raises it, with a path in it. continue: the first one is a warning, and the block is left.

    Args:
        on_error: stop or continue.
        path: the file that the blocks write, for errors that name none.
        consequence: what is lost, for the warning: "this checkpoint is not written".
    """

    on_error: str
    path: Path
    consequence: str
    _warned: bool = False

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, OSError):
            return False
        path = error.filename or self.path
        if self.on_error == "stop":
            if error.errno is None:  # a library's own: its text would be lost
                return False
            raise OSError(error.errno, error.strerror, str(path)) from error
        if not self._warned:
            say(
                f"warning: {path}: {error.strerror or error}: {self.consequence}, "
                "checkpoint.on_error is continue"
            )
        self._warned = True
        return True
