"""The doctor on extras that are there and extras that are not, and what a plan makes of it."""

from __future__ import annotations

import importlib.metadata

import pytest
import torch

from fastselfie.runs import doctor
from fastselfie.runs import dry_run as plan
from fastselfie.runs.doctor import Finding


@pytest.mark.extra
def test_extras_are_found_with_their_versions():
    found = {finding.name: finding for finding in doctor.examine()}
    distributions = {"ffcv": "ffcv", "dali": "nvidia-dali-cuda130", "onnx": "onnx"}
    for name, distribution in distributions.items():
        assert found[name].state == "ok"
        assert found[name].text.startswith(importlib.metadata.version(distribution))


@pytest.mark.parametrize("hidden", ["dali", "nvidia"])
def test_without_an_extra_it_gives_the_command(monkeypatch, hidden):
    """Where no package of NVIDIA's is installed, the search for nvidia.dali raises."""

    def find(name):
        if hidden == "nvidia" and name == "nvidia.dali":
            raise ModuleNotFoundError(name)

    monkeypatch.setattr(doctor.importlib.util, "find_spec", find)
    found = {finding.name: finding for finding in doctor.examine()}
    assert found["dali"].state == found["ffcv"].state == "missing"
    assert "fastselfie[dali]" in found["dali"].fix
    assert "libturbojpeg0-dev" in found["ffcv"].fix


NVRM = """NVRM version: NVIDIA UNIX {kind}x86_64 Kernel Module  {version}  Release Build
GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)
"""


@pytest.mark.parametrize(
    ("text", "driver"),
    [
        (NVRM.format(kind="", version="535.129.03"), "535.129.03"),
        (NVRM.format(kind="Open ", version="570.86.15"), "570.86.15"),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  560.35.03  Release",
            "560.35.03",
        ),
        ("", "unknown"),
        (None, "unknown"),
    ],
)
def test_a_gpu_is_reported_with_its_driver(monkeypatch, text, driver):
    read = doctor.Path.read_text

    def fake(path, **options):
        if str(path) != "/proc/driver/nvidia/version":
            return read(path, **options)
        if text is None:
            raise FileNotFoundError(path)
        return text

    monkeypatch.setattr(doctor.Path, "read_text", fake)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    facts = doctor.environment(torch.device("cuda", 0))
    gpu = {"device": "NVIDIA H100", "capability": "sm_90", "cuda": "13.0", "cudnn": "91002",
           "driver": driver}  # fmt: skip
    assert gpu.items() <= facts.items()
    on_cpu = doctor.environment(torch.device("cpu"))
    assert set(facts) - set(on_cpu) == {"capability", "cuda", "cudnn", "driver"}
    assert on_cpu["device"] == "cpu"


def test_it_says_what_the_compiler_of_steps_lacks(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    found = doctor._compile(torch.device("cpu"))
    assert found.state == "missing"
    assert "torch.compile needs the C++ compiler no-such-compiler" in found.text
    assert "runtime.compile=off" in found.fix
    monkeypatch.setenv("CXX", "true")
    assert doctor._compile(torch.device("cpu")).state == "ok"


def test_a_run_lacks_only_the_loader_that_it_uses(monkeypatch, tmp_path):
    findings = [Finding("ffcv", "missing", "not installed", "pip"), Finding("gpu", "bad", "x", "y")]
    monkeypatch.setattr(plan, "examine", lambda: findings)
    assert [line[:4] for line in plan._missing(tmp_path, 0, "auto")] == ["gpu:"]
    assert [line[:4] for line in plan._missing(tmp_path, 0, "ffcv")] == ["ffcv", "gpu:"]
