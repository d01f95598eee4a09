"""`profile` from the command line, and its parts: attribution, advice and estimate."""

from __future__ import annotations

import gzip
import itertools
import json
import math
import re
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import REPOSITORY, jpeg_bytes, textured, tiny_config, write_beton
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from fastselfie.config.load import load_config
from fastselfie.data.dataset import open_dataset
from fastselfie.data.loaders import build_loader
from fastselfie.errors import UserError
from fastselfie.models.selfie import build_selfie
from fastselfie.profiling import rates, run
from fastselfie.profiling.advice import Facts, advise
from fastselfie.profiling.estimate import GPUS, Target, estimate, parse_target, step_rates
from fastselfie.profiling.trace import OTHER, WINDOW, Span, flattened, memory_curve, phase_shares
from fastselfie.system.accelerator import Precision, choose_accelerator
from fastselfie.system.trace_ranges import PHASES, trace_range
from fastselfie.training.memory import estimate_finetuning
from fastselfie.training.pretrain import build_pretraining

IN_A_STEP = {"waiting", "patchify", "P", "A", "scoring", "backward", "optimiser", "logging"}


@pytest.fixture(autouse=True)
def _short_rounds(monkeypatch):
    monkeypatch.setattr(run, "_SECONDS", 0.05)
    monkeypatch.setattr(run, "_ROUNDS", 1)


# --- the command ------------------------------------------------------------------------------


@pytest.fixture
def photographs(tmp_path):
    images = [jpeg_bytes(textured(i, 96, 80)) for i in range(16)]
    return write_beton(tmp_path / "photographs.beton", images, [i % 2 for i in range(16)])


@pytest.fixture
def profiled(cli, tiny_yaml, photographs, tmp_path):
    out = tmp_path / "profile"
    result = cli(
        "profile", tiny_yaml, f"data.train={photographs}", "data.loader=native", "data.workers=1",
        "--steps", 3, "--out", out, "--plan", "8xH100", "--cores", 96,
    )  # fmt: skip
    assert result.status == 0, result.err
    return out, json.loads(result.out.splitlines()[-1]), result.err


def test_figures_page_and_trace(profiled):
    out, summary, said = profiled
    assert sorted(p.name for p in out.iterdir()) == [
        "profile.html", "profile.json", "trace.json.gz"]  # fmt: skip
    figures = json.loads((out / "profile.json").read_text())
    shares = figures["shares"]
    assert sum(shares.values()) == pytest.approx(1)
    assert all(shares[name] > 0 for name in IN_A_STEP)
    assert shares["copy"] == 0  # there is no device to copy to
    assert shares["other"] < 0.2  # the rest of a step is named
    assert set(figures["rates"]) == {"loader", "step", "e2e"}
    assert all(0 < r["min"] <= r["median"] <= r["max"] for r in figures["rates"].values())
    assert figures["decoding_threads"] == 1
    operators = [row["ms_a_step"] for row in figures["operators"]]
    assert operators == sorted(operators, reverse=True)
    assert not {row["name"] for row in figures["operators"]} & {*PHASES, WINDOW}
    weights = 4 * 4 * 64 * 16  # bytes: qkv's alone
    assert all(held > weights for _, held in figures["memory"]["tensors"])
    assert len(figures["memory"]["process"]) == 3
    assert summary["binding"] == figures["binding"]
    assert summary["report"] == str(out / "profile.html")
    for words in (
        "waiting for data",
        "end to end",
        f"the {summary['binding']} is the bottleneck",
        "on paper",
    ):
        assert words in said

    page = (out / "profile.html").read_text(encoding="utf-8")
    assert not re.search(r'(src|href)="(?!data:|#)|url\((?!#)', page)  # nothing is fetched
    assert page.count("<svg") == 2
    assert "time, s" in page
    assert "memory, MiB" in page
    assert "Computed, not measured" in page

    trace = json.loads(gzip.decompress((out / "trace.json.gz").read_bytes()))
    names = {event.get("name") for event in trace["traceEvents"]}
    assert names >= IN_A_STEP


def test_a_compiled_network_is_one_phase(monkeypatch):
    """Its own ranges are no part of the graph: torch would warn of each."""

    def unwanted(name):
        raise AssertionError(name)

    monkeypatch.setattr("fastselfie.system.trace_ranges.record_function", unwanted)
    config = tiny_config()
    model = torch.compile(build_selfie(config), backend="eager", fullgraph=True)
    order = torch.arange(16).expand(4, 16).contiguous()
    model(torch.randn(4, 16, 3, 8, 8), order)
    with (
        profile(activities=[ProfilerActivity.CPU]) as profiler,
        torch.profiler.record_function(WINDOW),
        torch.profiler.record_function("forward"),
    ):
        model(torch.randn(4, 16, 3, 8, 8), order)
    shares = run._shares({"traceEvents": traced(profiler)}, compiled=True)
    assert shares["forward"] > 0.5
    assert not {"P", "A", "scoring"} & set(shares)
    assert sum(shares.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--steps", "0"], "Invalid value for '--steps'"),
        (["data.train=/no/such"], "/no/such: no such file or folder"),
        (["--plan", "8xH1000", "--cores", "96"], "--plan 8xH1000: pass COUNTxGPU with one of H200"),
        (["--plan", "0xH100", "--cores", "96"], "--plan 0xH100"),
        (["--plan", "8xH100"], "--cores is missing"),
        (["--plan", "8xH100", "--cores", "0"], "--cores is 0"),
        (["--cores", "96"], "--cores needs --plan"),
        (["--out", "FILE"], "pass another path"),
        (["--out", "FILE/inside"], "pass another path"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(cli, tiny_yaml, image_folder, tmp_path, arguments,
                                            words):  # fmt: skip
    (tmp_path / "FILE").touch()
    arguments = [a.replace("FILE", str(tmp_path / "FILE")) for a in arguments]
    out = [] if "--out" in arguments else ["--out", tmp_path / "out"]
    result = cli("profile", tiny_yaml, f"data.train={image_folder}", *arguments, *out)
    assert result.status == 2
    last = result.err.splitlines()[-1]
    assert last.startswith("error: ")
    assert words in last
    assert not (tmp_path / "out").exists()


# --- attribution ------------------------------------------------------------------------------


def event(name, start, end, cat="user_annotation", tid=1, **args):
    return {"ph": "X", "cat": cat, "name": name, "ts": start, "dur": end - start, "tid": tid,
            "args": args}  # fmt: skip


def test_the_innermost_range_counts():
    ranges = [Span(10, 40, "waiting"), Span(20, 25, "copy"), Span(40, 90, "forward"),
              Span(50, 90, "P")]  # fmt: skip
    assert flattened(ranges, 0, 100) == [
        (0, 10, OTHER), (10, 20, "waiting"), (20, 25, "copy"), (25, 40, "waiting"),
        (40, 50, "forward"), (50, 90, "P"), (90, 100, OTHER),
    ]  # fmt: skip
    together = [Span(0, 5, "P"), Span(0, 9, "forward")]
    assert flattened(together, 0, 9) == [(0, 5, "P"), (5, 9, "forward")]


def test_a_gpus_time_goes_to_the_phase_that_launched_it():
    """The host runs ahead: P takes 10 of its time and 40 of the device's, in the next range."""
    trace = {
        "traceEvents": [
            {"name": "process_name", "ph": "M", "args": {}},
            event(WINDOW, 0, 100),
            event("waiting", 0, 10),
            event("P", 10, 20),
            event("backward", 20, 90),
            event("P", 0, 100, tid=9),  # another thread's
            event("cudaLaunchKernel", 12, 13, "cuda_runtime", correlation=1),
            event("cudaLaunchKernel", 30, 31, "cuda_runtime", tid=2, correlation=2),
            event("cudaLaunchKernel", 32, 33, "cuda_runtime", tid=2, correlation=3),
            event("conv", 25, 65, "kernel", tid=7, correlation=1),
            event("dgrad", 65, 75, "kernel", tid=7, correlation=2),
            event("wgrad", 70, 95, "kernel", tid=8, correlation=3),  # beside dgrad
        ]
    }
    shares = phase_shares(trace)
    assert {name: share for name, share in shares.items() if share} == pytest.approx(
        {"waiting": 0.1, "P": 0.1 + 0.4, "backward": 0.05 + 0.3, OTHER: 0.05}
    )


def test_a_copy_under_kernels_takes_no_time_and_one_alone_does():
    """The copy of the next batch runs from 5 to 45 beside kernels of 1, and from 60 to 70 alone."""
    kernels = [event("conv", at, at + 1, "kernel", tid=7, correlation=1) for at in range(50)]
    trace = {
        "traceEvents": [
            event(WINDOW, 0, 100),
            event("copy", 0, 2),
            event("P", 2, 100),
            event("cudaMemcpyAsync", 0, 1, "cuda_runtime", correlation=0),
            event("cudaLaunchKernel", 2, 3, "cuda_runtime", correlation=1),
            event("Memcpy HtoD", 5, 45, "gpu_memcpy", tid=8, correlation=0),
            event("Memcpy HtoD", 60, 70, "gpu_memcpy", tid=8, correlation=0),
            *kernels,
        ]
    }
    shares = phase_shares(trace)
    assert shares["copy"] == pytest.approx(0.1)
    assert shares["P"] == pytest.approx(0.9)


def test_shares_are_those_of_a_real_trace():
    """Of the lengths that torch's profiler wrote down."""
    with (
        profile(activities=[ProfilerActivity.CPU]) as profiler,
        torch.profiler.record_function(WINDOW),
    ):
        for name in ("waiting", "backward", "waiting"):
            with trace_range(name):
                torch.ones(64, 64).sum()
    events = traced(profiler)

    def length(name):
        wanted = {"cat": "user_annotation", "name": name}
        return sum(e["dur"] for e in events if wanted.items() <= e.items())

    shares = phase_shares({"traceEvents": events})
    # Moments are large numbers: the sum of one and a length is rounded, at both ends of a range.
    rounding = 2 * 2 * math.ulp(max(e.get("ts", 0) for e in events)) / length(WINDOW)
    for name in ("waiting", "backward"):
        assert shares[name] > 2 * rounding
        assert shares[name] == pytest.approx(length(name) / length(WINDOW), abs=rounding)


def traced(profiler):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return json.loads(path.read_text())["traceEvents"]


def test_a_round_waits_for_the_device_once_and_counts_that_wait(monkeypatch):
    """A wait after each step would keep the host from running ahead, as it does in training."""
    now, reads = [0.0], []
    monkeypatch.setattr(rates.time, "perf_counter", lambda: now[0])

    class Step:
        def __call__(self, number, batch):
            now[0] += 1.0

        def read(self):
            reads.append(now[0])
            now[0] += 3.0

    batches = itertools.repeat(SimpleNamespace(images=range(8)))
    found = rates.measure_round(batches, Step(), 5.0)
    assert len(reads) == 2  # after the warm-up and at the end
    assert found[:3] == (5 * 8, 5.0 + 3.0, 0.0)


def test_memory_is_the_greatest_of_each_bin():
    def held(at, total, kind):
        args = {"Device Type": kind, "Total Allocated": total}
        return {"ph": "i", "name": "[memory]", "ts": at, "args": args}

    events = [event(WINDOW, 0, 4e6), held(5, 10, 0), held(6, 30, 0), held(7, 20, 0),
              held(2e6 + 1, 40, 0), held(2e6 + 2, 99, 1), held(5e6, 77, 0)]  # fmt: skip
    assert [v for _, v in memory_curve({"traceEvents": events}, cuda=False)] == [30, 40]
    ((at, value),) = memory_curve({"traceEvents": events}, cuda=True)
    assert value == 99
    assert at == pytest.approx(2, abs=0.01)


def test_the_ranges_change_nothing_that_is_learned():
    """A profiled step is the step: the same weights, bit for bit."""
    config = tiny_config(data={"loader": "synthetic"})
    accelerator = choose_accelerator(config.runtime)
    weights = []
    for profiling in (False, True):
        step = build_pretraining(config, accelerator).step
        source = open_dataset(config.data, 0).train
        data = config.data.model_copy(update={"loader": "synthetic"})
        batches = build_loader(source, data, 0, accelerator.device).stream(0, 8)
        if profiling:
            with profile(activities=[ProfilerActivity.CPU]):
                step(1, next(batches))
        else:
            step(1, next(batches))
        weights.append(torch.cat([p.detach().flatten() for p in step.model.parameters()]))
    assert torch.equal(*weights)


# --- advice -----------------------------------------------------------------------------------


def facts(**changes):
    values = {
        "loader": "native", "loader_rate": 1000.0, "step_rate": 4000.0, "e2e_rate": 980.0,
        "threads": 2, "cores": 2, "device": "cuda", "compiled": False, "image_size": 224,
        "long_side": 800.0, "phase": "backward", "phase_share": 0.6, "planned": False,
    }  # fmt: skip
    return Facts(**{**values, **changes})


def test_a_slow_loader():
    (line,) = advise(facts())
    # 4,000 / (1,000 / 2) = 8 threads; a quarter of the pixels is half of the side.
    assert line == (
        "the loader is the bottleneck: the step alone is 4.0 times as fast: about 6 more cores "
        "(data.workers=8), or about max_side 400 (fastselfie prepare --max-side, now 800 on "
        "average) would keep up"
    )
    small = advise(facts(long_side=300.0))[0]
    assert "max_side" not in small  # 150 is below what the network takes
    assert "but only 2 decode" in advise(facts(cores=16))[1]
    assert "fastselfie prepare" in advise(facts(loader="folder", long_side=None))[1]
    assert "decodes nothing" in advise(facts(loader="resident", threads=0))[0]


def test_a_slow_step():
    lines = advise(facts(loader_rate=8000.0, e2e_rate=3900.0, threads=8))
    assert lines[0].startswith("the step is the bottleneck: the loader alone is 2.0 times as fast")
    assert "backward (60%)" in lines[0]
    assert lines[1] == "4 of 8 decoding threads would be enough (data.workers=4)"
    assert "runtime.compile=default" in lines[2]
    slow = advise(facts(loader_rate=8000.0, e2e_rate=3000.0, device="cpu", compiled=True))
    assert slow[-1] == ("loader and step together reach 75% of the slower one: they share 2 cores")


def test_rates_that_contradict_one_another_are_not_believed():
    assert "profile again" in advise(facts(e2e_rate=1500.0))[-1]
    assert "profile again" not in advise(facts(e2e_rate=1050.0))[-1]


@pytest.mark.parametrize("cuda", [True, False])
def test_a_gpus_kernels_are_not_counted_beside_their_operators(cuda):
    def event(key, where, cpu, device, note=False):
        return SimpleNamespace(key=key, device_type=where, self_cpu_time_total=cpu, count=4,
                               self_device_time_total=device, is_user_annotation=note)  # fmt: skip

    events = [
        event("aten::mm", DeviceType.CPU, 2000.0, 6000.0),
        event("sgemm_128x64", DeviceType.CUDA, 0.0, 6000.0),
        event("backward", DeviceType.CPU, 9000.0, 9000.0, note=True),
        event("aten::add", DeviceType.CPU, 4000.0, 1000.0),
    ]
    rows = run._operators(SimpleNamespace(key_averages=lambda: events), 2, cuda)
    found = {row["name"]: (row["calls_a_step"], row["ms_a_step"]) for row in rows}
    times = {"aten::mm": (2, 3.0), "aten::add": (2, 0.5)}
    assert found == (times if cuda else {"aten::mm": (2, 1.0), "aten::add": (2, 2.0)})


# --- on paper ---------------------------------------------------------------------------------


def test_targets():
    assert parse_target(None, None) is None
    assert parse_target("8xH100", 96) == Target(8, "H100", 96)
    assert parse_target("rtx 4090", 12) == Target(1, "RTX4090", 12)
    with pytest.raises(UserError, match="RTX4090"):
        parse_target("8xTPU", 96)


def test_a_resnet_50_is_near_what_was_published():
    """NVIDIA's PyTorch example in mixed precision; a V100 of 16 GB and one of 32 GB."""
    config = load_config(REPOSITORY / "configs" / "in224.yaml")
    kept = estimate_finetuning(config, 1000, Precision("bf16", "test")).per_image
    for name, published in (("A100", 2470), ("V100", 1200), ("V100", 1156)):
        compute, bandwidth = step_rates(GPUS[name], 8.18e9, kept)  # 4.09 G multiply-adds forward
        assert 1 / (1 / compute + 1 / bandwidth) == pytest.approx(published, rel=0.15)


def test_kernels_that_run_on_a_gpu_alone_change_no_estimate(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    triton, auto = (tiny_config(runtime={"kernels": kernels}) for kernels in ("triton", "auto"))
    target = Target(8, "H100", 96)
    assert estimate(triton, target, None) == estimate(auto, target, None)


def test_an_estimate_scales_and_names_the_bottleneck():
    config = load_config(REPOSITORY / "configs" / "in224.yaml")
    one = estimate(config, Target(1, "H100", 96), 3000.0)
    many = estimate(config, Target(8, "H100", 96), 300.0)
    assert many.compute == pytest.approx(8 * one.compute)
    # P is 8.5 M weights on 49 patches, A 16.5 M on 38 vectors: 2 a weight and place, 3 passes.
    assert 3 * 4 < one.gflop_per_image < 3 * 12
    assert one.binds in ("compute", "bandwidth")
    assert one.step == pytest.approx(1 / (1 / one.compute + 1 / one.bandwidth))
    assert (
        f"the step would be the bottleneck, mostly by memory bandwidth: {one.step:,.0f} images"
        in (one.sentence)
    )
    # Faster than the step, whose two limits lie above: it adds their times.
    between = estimate(config, Target(1, "H100", 1), 1.1 * one.step)
    assert between.binds == "bandwidth"
    assert estimate(config, Target(1, "H100", 1), 0.9 * one.step).binds == "loader"
    assert many.binds == "loader"
    assert many.loader == 96 * 300
    assert "more cores" in many.sentence
    nothing = estimate(config, Target(8, "T4", 1), None)
    assert nothing.loader is None
    assert nothing.binds in ("compute", "bandwidth")
