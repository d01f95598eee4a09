"""What triton_sweep.py calls a failure."""

from __future__ import annotations

import triton_sweep
from helpers.benchmarks import run_benchmark


def test_a_spill_and_too_much_shared_memory_are_found():
    row = {"tile": [1], "targets": {"sm_80": [255, 8, 0], "sm_90": [1, 0, 102_000]}}
    row["targets"]["sm_120"] = [255, 0, 99 * 1024]
    lines = triton_sweep.failures({"versions": {"3.9.0": {"score: M 4": row}}})
    assert lines == [
        "Triton 3.9.0, score: M 4, sm_80: 8 bytes spilled, 0 of shared memory",
        "Triton 3.9.0, score: M 4, sm_90: 0 bytes spilled, 102000 of shared memory",
    ]


def test_a_folder_without_triton_is_named(tmp_path):
    out = tmp_path / "out.json"
    done = run_benchmark("benchmarks/triton_sweep.py", "--json", out, "--triton", tmp_path)
    assert done.returncode == 2
    assert done.stderr == f"error: --triton {tmp_path}: it holds no triton: pip install it with " \
                          "--target\n"  # fmt: skip
