"""Bad options of a benchmark give one line, before it measures for minutes."""

from __future__ import annotations

import importlib
import os

import pytest
import torch
from conftest import REPOSITORY
from helpers.benchmarks import run_benchmark

from fastselfie.errors import UserError

pytestmark = pytest.mark.slow

STEP = ("step.py", "--config", "configs/cifar10.yaml")
JSON = ("--json", "OUT/result.json")


def run(script, *arguments, interpret=None):
    return run_benchmark(f"benchmarks/{script}", *arguments, TRITON_INTERPRET=interpret)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((*STEP, "--contenders", "ours,turbo", *JSON), "--contenders: unknown contender 'turbo'"),
        ((*STEP, "--contenders", "ours,NCHW,ours", *JSON), "a contender is named twice"),
        (("step.py", "--config", "no-such.yaml", "--contenders", "ours", *JSON), "no-such.yaml"),
        ((*STEP, "--rounds", "0", *JSON), "--rounds 0: it must be above 0"),
        ((*STEP, "--batch", "0", *JSON), "--batch 0: it must be above 0"),
        ((*STEP, "--seconds", "-1", *JSON), "--seconds -1.0: it must be above 0"),
        ((*STEP, "--rounds", "many", *JSON), "invalid int value: 'many': see --help"),
        ((*STEP, "--isa", "AVX3", *JSON), "--isa: invalid choice: 'AVX3'"),
        (STEP, "--json"),
        ((*STEP, "--json", "FILE/result.json"), "FILE/result.json: "),
        ((*STEP, "--json", "OUT"), "is a folder: give a file in it"),
        (("kernels.py", "--batch", "0", *JSON), "--batch 0: it must be above 0"),
        (("kernels.py", "--seconds", "0", *JSON), "--seconds 0.0: it must be above 0"),
        (("kernels.py", "--json", "FILE/result.json"), "FILE/result.json: "),
    ],
)
def test_bad_input_is_one_line(tmp_path, arguments, named):
    (tmp_path / "FILE").touch()
    (tmp_path / "OUT").mkdir()
    places = {word: str(tmp_path / word) for word in ("FILE", "OUT")}
    for word, place in places.items():
        arguments = [a.replace(word, place) for a in arguments]
    done = run(*arguments)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert named in line.replace(str(tmp_path) + "/", "")


def test_kernels_are_not_timed_in_the_interpreter(tmp_path):
    done = run("kernels.py", "--json", str(tmp_path / "out.json"), interpret="1")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "TRITON_INTERPRET is set" in line


def test_a_missing_result_folder_is_created(tmp_path, tiny_yaml):
    out = tmp_path / "missing" / "result.json"
    done = run(
        "step.py", "--config", str(tiny_yaml), "--contenders", "ours", "--rounds", "1",
        "--seconds", "0.01", "--batch", "4", "--threads", "1", "--json", str(out),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert out.stat().st_size > 0


def test_an_unsupported_instruction_set_is_refused(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True}, raising=False)
    step = importlib.import_module("step")
    step._limit_onednn("AVX2")
    assert os.environ["ONEDNN_MAX_CPU_ISA"] == "AVX2"
    with pytest.raises(UserError, match=r"--isa AVX512_CORE_AMX: this processor has no amx_bf16"):
        step._limit_onednn("AVX512_CORE_AMX")
