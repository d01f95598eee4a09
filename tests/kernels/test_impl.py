"""Which implementation runs, where Triton cannot."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace

import pytest
import torch
import triton.runtime
from conftest import tiny_config
from triton.runtime.build import compile_module_from_src

from fastselfie.errors import UserError
from fastselfie.kernels import impl
from fastselfie.runs import doctor
from fastselfie.system import accelerator, console

GPU = torch.device("cuda", 0)


class Driver:
    """Triton's driver: the first use compiles C code."""

    @property
    def utils(self):
        return compile_module_from_src("#include <Python.h>\n", "launcher")


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """An sm_80 as torch sees it, and Triton's driver for it, with nothing compiled yet."""
    properties = SimpleNamespace(major=8, total_memory=2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    for name, value in (("is_available", True), ("device_count", 1), ("set_device", None),
                        ("get_device_name", "GPU"), ("get_device_capability", (8, 0))):  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(triton.runtime, "driver", SimpleNamespace(active=Driver()))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    impl.launch_fault.cache_clear()
    console.say_once.cache_clear()
    yield
    impl.launch_fault.cache_clear()


@pytest.fixture(params=["no compiler", "no Python.h"])
def slim(request, gpu, monkeypatch):
    """A container image without one of the two."""
    if request.param == "no compiler":
        monkeypatch.setenv("PATH", "")
    else:
        monkeypatch.setenv("CC", "false")
    return {"no compiler": "RuntimeError", "no Python.h": "CalledProcessError"}[request.param]


def test_triton_that_cannot_compile_its_launcher_is_one_line(slim):
    line = impl.unavailable(GPU)
    assert line.startswith("Triton could not compile its launcher: install")
    assert slim in line
    assert "\n" not in line


def test_auto_then_takes_plain_torch_and_says_so_once(slim, capsys):
    runtime = tiny_config(runtime={"kernels": "auto"}).runtime
    for _ in range(2):
        accelerator.choose_accelerator(runtime)
    said = capsys.readouterr().err
    assert said.count("runtime.kernels is auto, and plain torch replaces Triton: Triton") == 1
    with pytest.raises(UserError, match=r"^runtime\.kernels: Triton could not"):
        accelerator.choose_accelerator(tiny_config(runtime={"kernels": "triton"}).runtime)


def test_doctor_names_it_before(slim):
    found = doctor._triton(GPU)
    assert found.state == "missing"
    assert "could not compile its launcher" in found.text
    assert doctor._triton(torch.device("cpu")).state == "ok"


def test_a_compiler_makes_it_available(gpu, monkeypatch, capsys):
    launcher = SimpleNamespace(utils="compiled")
    monkeypatch.setattr(triton.runtime, "driver", SimpleNamespace(active=launcher))
    assert impl.unavailable(GPU) is None
    accelerator.choose_accelerator(tiny_config().runtime)
    assert "runtime.kernels" not in capsys.readouterr().err


def test_torch_compile_does_not_trace_the_search_for_triton(monkeypatch):
    def compiled(function):
        return torch.compile(function, backend="eager", fullgraph=True)

    compiled(lambda x: x + 1)(torch.zeros(2))  # imports what searches for packages itself
    find_spec = importlib.util.find_spec

    def find(name):
        if name == "triton":
            torch._dynamo.graph_break()  # refused where it is traced
        return find_spec(name)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    found = compiled(lambda x: x + 1 if impl.unavailable(x.device) is None else x + 2)
    assert found(torch.zeros(2)).tolist() == [1, 1]
