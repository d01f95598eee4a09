"""What a run may ask of the machine."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from conftest import tiny_config

from fastselfie.errors import UserError
from fastselfie.system.accelerator import choose_accelerator
from fastselfie.system.resources import take_share, total_memory

AUTO = {"device": "cpu", "precision": "auto"}


def test_triton_without_a_gpu_is_refused_before_the_start(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    runtime = tiny_config(runtime={"kernels": "triton", "device": "cpu"}).runtime
    with pytest.raises(UserError, match=r"^runtime\.kernels: .* tensors are on cpu"):
        choose_accelerator(runtime)
    choose_accelerator(tiny_config(runtime={"kernels": "auto", "device": "cpu"}).runtime)


@pytest.mark.parametrize("has", ["amx_bf16", "avx512_bf16"])
def test_a_cpu_with_instructions_for_bf16_uses_them(has, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {has: True}, raising=False)
    found = choose_accelerator(tiny_config(runtime=AUTO).runtime).precision
    assert (found.name, found.why) == ("bf16", f"a CPU with {has}")
    asked = choose_accelerator(tiny_config(runtime={"device": "cpu", "precision": "fp32"}).runtime)
    assert asked.precision.name == "fp32"


@pytest.mark.parametrize("name", ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"])
@pytest.mark.parametrize(
    ("limit", "precision"),
    [("AVX2", "fp32"), ("avx512_core", "fp32"), ("AVX512_CORE_BF16", "bf16"), ("ALL", "bf16")],
)
def test_a_limit_of_onednn_counts_as_what_the_cpu_has(name, limit, precision, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True}, raising=False)
    monkeypatch.setenv(name, limit)
    found = choose_accelerator(tiny_config(runtime=AUTO).runtime).precision
    assert found.name == precision
    assert (limit.upper() in found.why) == (precision == "fp32")


@pytest.mark.parametrize("capabilities", [{}, {"avx512_f": True, "avx512_bf16": False}, None])
def test_another_cpu_stays_at_fp32(capabilities, monkeypatch):
    if capabilities is None:  # an older torch
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    else:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert choose_accelerator(tiny_config(runtime=AUTO).runtime).precision.name == "fp32"


def test_processes_share_a_gpu_only_where_there_are_more_of_them(monkeypatch):
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=90)
    )
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for processes, each in ((1, 90), (2, 90), (3, 45), (4, 45), (6, 30)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        assert total_memory(torch.device("cuda")) == each
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # the only one that it sees
    monkeypatch.setenv("FASTSELFIE_PROCESSES_PER_GPU", "0")
    for gpus, each in ((1.0, 90), (0.5, 45)):
        take_share(1.0, gpus)
        assert total_memory(torch.device("cuda")) == each
