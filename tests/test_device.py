"""What a run may ask of the machine."""

from __future__ import annotations

import pytest
from conftest import tiny_config

from fastselfie.device import choose_machine
from fastselfie.errors import UserError


def test_triton_without_a_gpu_is_refused_before_the_start(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    runtime = tiny_config(runtime={"kernels": "triton", "device": "cpu"}).runtime
    with pytest.raises(UserError, match=r"^runtime\.kernels: .* tensors are on cpu"):
        choose_machine(runtime)
    choose_machine(tiny_config(runtime={"kernels": "auto", "device": "cpu"}).runtime)
