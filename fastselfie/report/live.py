"""The page of a run that goes on, written by the run itself."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from fastselfie.config import Config
from fastselfie.report.page import write_page
from fastselfie.runs.folder import PAGE, read_run
from fastselfie.training.disk_errors import DiskErrors

_SHARE = 1 / 200  # of the time may go into pages


class LivePage:
    """Writes report.html into `folder` after lines of the log, in a two-hundredth of the time.

    A context manager: leaving it writes the page a last time, also of a run that is stopped. leads:
    whether this process writes. Of a page that the disk refuses see `CheckpointConfig.on_error`.
    """

    def __init__(self, config: Config, folder: Path, is_main: bool = True) -> None:
        self.config = config
        self.folder = folder
        self.is_main = is_main
        self._disk_errors = DiskErrors(
            config.checkpoint.on_error, folder / PAGE, "it is not written"
        )
        self._due = 0.0
        if is_main:
            # Some tenths of a second that the last page takes in any case: not a page's cost.
            with suppress(ImportError):
                import matplotlib.figure  # noqa: F401

    def __enter__(self) -> LivePage:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.write(running=False)
        elif not isinstance(error, KeyboardInterrupt):  # a second Ctrl-C, which leaves at once
            with suppress(Exception):  # the error on its way says more
                self.write(running=False)

    def __call__(self) -> None:
        """The log has a new line: write the page, unless the last one is too near.

        Raises OSError, under on_error: stop.
        """
        if time.perf_counter() >= self._due:
            self.write(running=True)

    def write(self, running: bool) -> None:
        """Write it now. Raises OSError, under on_error: stop."""
        if not self.is_main:
            return
        began = time.perf_counter()
        with self._disk_errors:
            write_page(read_run(self.folder, self.config), running)
        ended = time.perf_counter()
        self._due = ended + (ended - began) / _SHARE
