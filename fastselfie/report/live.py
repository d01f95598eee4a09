"""The page that a run writes while it trains."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

from fastselfie.config import Config
from fastselfie.report.page import write_page
from fastselfie.runs.folder import PAGE, read_run
from fastselfie.training.disk_errors import DiskErrors

_SHARE = 1 / 200  # most of the time that pages may take


class LivePage:
    """Writes report.html after log lines, in at most 1/200 of the time.

    Use it as a context manager: on exit it writes the page a last time, after an error too. If the
    page cannot be written, checkpoint.on_error decides.

    Args:
        config: Config of the run.
        folder: Folder of the run, for the page.
        is_main: Whether this process writes; only rank 0 does.
    """

    def __init__(self, config: Config, folder: Path, is_main: bool = True) -> None:
        self.config, self.folder, self.is_main = config, folder, is_main
        on_error = config.checkpoint.on_error
        self._disk_errors = DiskErrors(on_error, folder / PAGE, "it is not written")
        self._due = 0.0
        if is_main:
            # Takes tenths of a second, once: must not count as the cost of the first page.
            with suppress(ImportError):
                import matplotlib.figure  # noqa: F401

    def __enter__(self) -> LivePage:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None:
            self.write(running=False)
        elif not issubclass(kind, KeyboardInterrupt):  # a second Ctrl-C exits at once
            with suppress(Exception):  # must not hide the error
                self.write(running=False)

    def __call__(self) -> None:
        """Write the page after a new log line, unless the last one was too recent.

        Raises:
            OSError: The page cannot be written, and checkpoint.on_error is stop.
        """
        if time.perf_counter() >= self._due:
            self.write(running=True)

    def write(self, running: bool) -> None:
        """Write the page now.

        Args:
            running: Whether the run is still training.

        Raises:
            OSError: The page cannot be written, and checkpoint.on_error is stop.
        """
        if not self.is_main:
            return
        start = time.perf_counter()
        with self._disk_errors:
            write_page(read_run(self.folder, self.config), running)
        end = time.perf_counter()
        self._due = end + (end - start) / _SHARE
