"""What surrounds the checks that only a GPU can make: their verdicts, time and results."""

from __future__ import annotations

import json
import math
import os
import select
import subprocess
import sys
import time
from dataclasses import replace
from unittest import mock

import gpu_check
import kernels
import pytest
import torch
import triton.testing
from conftest import REPOSITORY
from support import checks, gpu_programs, norm_check, pointwise_check, pool_check


@pytest.mark.parametrize("ratio", [1.01, math.inf, math.nan])
@pytest.mark.parametrize("first", [True, False])
def test_a_ratio_above_the_limit_or_nan_fails_and_all_are_reported(ratio, first):
    """max() may drop NaN, depending on its position."""
    rows = {"a": {"loss": 0.5, "du": 1.0}, "b": {"loss": ratio}}
    rows = rows if first else dict(reversed(rows.items()))
    made = checks.run_check(lambda: checks.within(rows, 1.0, "error"), 60.0)
    assert made["state"] == "FAILED"
    assert "b: loss" in made["why"]
    assert "a: " not in made["why"]
    told = ratio if math.isfinite(ratio) else str(ratio)
    assert made["found"] == {"error": {"a": {"loss": 0.5, "du": 1.0}, "b": {"loss": told}}}


def test_ratios_within_the_limit_are_reported():
    assert checks.within({"a": {"du": 0.123456}}, 1.0, "error") == {"error": {"a": {"du": 0.1235}}}


def test_the_tolerance_rejects_tf32_and_accepts_three_products():
    """A sum of 1,024 products is rejected if the factors have 11 bits, as in tf32, not 24."""
    x, y = torch.randn(2, 64, 1024)
    true, plain = x.double() @ y.double().T, x @ y.T

    def ratio(lost):
        """Of the product without the `lost` lowest bits, summed exactly."""
        cut = [(t.view(torch.int32) >> lost << lost).view(torch.float32).double() for t in (x, y)]
        return gpu_check.error_of_allowed(true, plain, (cut[0] @ cut[1].T).float(), 1024)

    assert ratio(0) < 1 < ratio(13)
    broken = torch.full_like(plain, math.nan)
    assert math.isnan(gpu_check.error_of_allowed(true, plain, broken, 1024))


def test_the_score_is_checked_in_the_dtypes_that_training_has():
    """Autocast computes layer norms, and so u, in float32 on a GPU: `h` alone is half precision."""
    kinds = {(torch.float32, torch.bfloat16), (torch.float32, torch.float16)}
    assert kinds <= set(gpu_check._SCORED)
    u, h = gpu_check._SCORED[-1]
    with monkeypatch_cuda():
        loss, du, dh, _, pooled_loss, dv, pooled_dh = gpu_check._score(2, 16, 3, u, h, "reference")
    assert (loss.dtype, du.dtype, dh.dtype) == (torch.float32, u, h)
    assert (pooled_loss.dtype, dv.dtype, pooled_dh.dtype) == (torch.float32, torch.float32, h)


@pytest.mark.parametrize(
    ("module", "parity"),
    [(norm_check, gpu_check.norm_parity), (pointwise_check, gpu_check.product_parity)],
)
def test_the_norms_of_triton_are_as_close_as_torchs(module, parity, monkeypatch):
    """Interpreted, on the smallest shape; and a wrong result is found."""
    monkeypatch.setattr(module, "_SHAPES", module._SHAPES[1:2])
    with monkeypatch_cuda():
        assert parity()["error of what is allowed"]
        outcomes = module._outcomes
        monkeypatch.setattr(module, "_outcomes", lambda *a: [*outcomes(*a)[:2], [
            t * 1.02 for t in outcomes(*a)[2]
        ]])  # fmt: skip
        with pytest.raises(checks.CheckError, match="running variance"):
            parity()


def test_the_max_pool_of_triton_is_checked(monkeypatch):
    """Interpreted, on a small shape; and a wrong gradient is found."""
    monkeypatch.setattr(pool_check, "_SHAPES", ((3, 33, 7, 5),))
    outcome = pool_check._outcome
    with monkeypatch_cuda():
        assert len(gpu_check.pool_parity()["error of what is allowed"]) == 3
        monkeypatch.setattr(pool_check, "_outcome", lambda x, gradient, impl: (
            outcome(x, gradient, impl)[0],
            outcome(x, gradient, impl)[1] * (1.02 if impl == "triton" else 1),
        ))  # fmt: skip
        with pytest.raises(checks.CheckError, match="dx"):
            gpu_check.pool_parity()


def monkeypatch_cuda():
    """Inside, to move a tensor to the GPU leaves it where it is."""
    return mock.patch.object(torch.Tensor, "cuda", lambda self, *_: self)


def test_what_compiles_or_takes_long_is_in_a_part_of_its_own(monkeypatch):
    quick, full = gpu_check.PARTS["quick"], gpu_check.PARTS["full"]
    assert set(full) - set(quick) == set(gpu_check.SLOW)
    assert {gpu_check.precision_and_graphs, gpu_check.step_rates} <= set(gpu_check.SLOW)
    assert gpu_check.SECONDS["quick"] < 240
    batches = []

    def noted(name, *arguments):
        batches.append(int(arguments[arguments.index("--batch") + 1]))

    monkeypatch.setattr(gpu_check, "script", noted)
    gpu_check.step_rates()
    assert batches[0] >= 256  # on fewer, in224 waits for launches


@pytest.mark.slow
@pytest.mark.extra
def test_every_check_runs_dry(tmp_path):
    """Its first run on a GPU is not its first run."""
    result, script = tmp_path / "gpu.json", REPOSITORY / "benchmarks" / "gpu_check.py"
    done = subprocess.run(
        [sys.executable, script, "full", "--dry", "--json", result],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, check=False, capture_output=True,
        text=True, timeout=1200,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-5000:]
    states = {row["check"]: row["state"] for row in json.loads(result.read_text())["checks"]}
    assert states == {check.__name__: "ok" for check in gpu_check.PARTS["full"]}


def test_the_lines_that_time_a_gpu_run_dry(monkeypatch):
    """`kernel_times` starts a script, whose dry run times a CPU."""

    def bench(run, quantiles):
        run()
        return [1.0] * len(quantiles)

    class Gpu:
        """Named cuda, and on the CPU."""

        type = "cuda"

        def __str__(self):
            return "cpu"

    for name in ("do_bench", "do_bench_cudagraph"):
        monkeypatch.setattr(triton.testing, name, bench)
    monkeypatch.setattr(torch, "compile", lambda function, fullgraph: function)
    monkeypatch.setattr(kernels, "unavailable", lambda device: None)
    times = kernels._times(replace(kernels.SHAPES[1], b=2), Gpu(), 0.0)
    assert set(times["milliseconds"]) == {"eager", "torch.compile", "triton", "program"}
    assert times["gigabytes_a_second"] > 0
    pooled = kernels._pool_times(2, Gpu(), 0.0)
    assert set(pooled["milliseconds"]) == {"eager", "torch.compile", "triton"}


def test_without_a_gpu_only_a_dry_run_is_allowed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "quick", "--json", str(tmp_path / "a")])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as left:
        gpu_check.main()
    assert left.value.code == 2
    assert "torch sees no GPU here" in capsys.readouterr().err


# --- time and results -------------------------------------------------------------------------


def test_all_checks_share_one_deadline_and_each_result_is_written_at_once(tmp_path):
    path, seen = tmp_path / "results" / "gpu.json", []

    def read():
        return [row["state"] for row in json.loads(path.read_text())["checks"]]

    def right():
        return {"figure": 1}

    def wrong():
        seen.append(read())
        raise RuntimeError("no")

    def stubborn():
        seen.append(read())
        time.sleep(60)
        seen.append("waited for")

    def late():
        seen.append("late")

    made = checks.run_checks((right, wrong, stubborn, late), path, 0.5)
    assert seen == [["ok"], ["ok", "FAILED"]]
    assert read() == [row["state"] for row in made] == ["ok", *["FAILED"] * 3]
    assert made[0]["found"] == {"figure": 1}
    assert [row["why"] for row in made[1:]] == [
        "RuntimeError: no", *["TimeoutError: the time for all checks is over"] * 2
    ]  # fmt: skip


def test_a_script_that_times_out_is_killed_with_its_workers(tmp_path, monkeypatch):
    """The script sends SIGALRM itself, after its worker has opened a pipe."""
    held, script = tmp_path / "held", tmp_path / "script.py"
    os.mkfifo(held)
    end = os.open(held, os.O_RDONLY | os.O_NONBLOCK)
    worker = (
        f"import time; held = open({str(held)!r}, 'w'); print(flush=True); time.sleep(60);"
        "held.write('not killed')"
    )
    script.write_text(
        "import os, signal, subprocess, sys\n"
        f"command = [sys.executable, '-c', {worker!r}]\n"
        "worker = subprocess.Popen(command, stdout=subprocess.PIPE)\n"
        "worker.stdout.readline()\n"
        "os.kill(os.getppid(), signal.SIGALRM)\n"
        "worker.wait()\n"
    )
    monkeypatch.setattr(gpu_programs, "BENCHMARKS", tmp_path)
    made = checks.run_check(lambda: gpu_programs.script("script.py"), 600.0)
    assert made["why"] == "TimeoutError: the time for all checks is over"
    assert select.select([end], [], [], 30)[0], "the worker lives on"
    assert os.read(end, 1) == b""
    os.close(end)


def test_the_last_output_of_a_failed_script_is_reported(tmp_path, monkeypatch):
    (tmp_path / "script.py").write_text("raise SystemExit('error: no such file')")
    monkeypatch.setattr(gpu_programs, "BENCHMARKS", tmp_path)
    made = checks.run_check(lambda: gpu_programs.script("script.py"), 60.0)
    assert made["why"] == "CheckError: error: no such file\n"


def test_without_dali_its_check_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)  # stands for one that is not there
    made = checks.run_check(gpu_check.dali_mixed, 60.0)
    assert made["state"] == "missing"
    assert "nvidia.dali" in made["why"]
