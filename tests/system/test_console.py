"""Which messages reach standard error."""

from __future__ import annotations

import pytest

from fastselfie.system.console import console, messages, say


def test_the_innermost_block_decides_which_messages_are_shown(capsys, monkeypatch):
    monkeypatch.setattr(console, "_file", None)  # standard error as it is now
    with messages(shown=False):
        say("dropped")
        with messages(shown=True):
            say("shown")
        say("dropped")
    say("after")
    assert capsys.readouterr().err.split() == ["shown", "after"]


def test_messages_are_shown_again_after_an_error():
    with pytest.raises(OSError, match="disk"), messages(shown=False):
        raise OSError("disk")
    assert not console.quiet
