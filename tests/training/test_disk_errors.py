"""`checkpoint.on_error`: what an error of the disk does to a run."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from fastselfie.training.disk_errors import DiskErrors

PATH = Path("runs/x/log.jsonl")
LOST = "lines are missing in it"


def full_disk(*path):
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *path)


def test_under_stop_the_error_names_the_file():
    with (
        pytest.raises(OSError, match=r"No space left.*runs/x/log\.jsonl") as raised,
        DiskErrors("stop", PATH, LOST),
    ):
        raise full_disk()
    assert raised.value.errno == errno.ENOSPC
    with pytest.raises(OSError, match=r"No space left.*events"), DiskErrors("stop", PATH, LOST):
        raise full_disk("tensorboard/events")


def test_under_stop_an_error_without_a_number_keeps_its_text():
    with pytest.raises(OSError, match="image file is truncated"), DiskErrors("stop", PATH, LOST):
        raise OSError("image file is truncated")


def test_under_continue_the_first_error_is_a_warning(capsys):
    errors = DiskErrors("continue", PATH, LOST)
    for _ in range(3):
        with errors:
            raise full_disk()
    assert capsys.readouterr().err == (
        f"warning: {PATH}: No space left on device: {LOST}, checkpoint.on_error is continue\n"
    )


@pytest.mark.parametrize("on_error", ["stop", "continue"])
def test_other_errors_go_on(on_error):
    with pytest.raises(ZeroDivisionError), DiskErrors(on_error, PATH, LOST):
        raise ZeroDivisionError
