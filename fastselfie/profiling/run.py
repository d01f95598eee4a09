"""Profile some real pretraining steps, measure rates, and write the report."""

from __future__ import annotations

import gzip
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile, record_function

from fastselfie.config import Config
from fastselfie.data.beton.reader import IMAGE_MODES
from fastselfie.data.dataset import BetonSource, Source, open_dataset
from fastselfie.data.loaders import Batch, build_loader, choose_loader
from fastselfie.data.loaders.backend import decoder_count
from fastselfie.profiling.advice import Facts, advise
from fastselfie.profiling.estimate import ASSUMED, Target, estimate
from fastselfie.profiling.rates import measure_rates
from fastselfie.profiling.trace import OTHER, WINDOW, memory_curve, phase_shares
from fastselfie.report.profile import write_profile_page
from fastselfie.runs.doctor import environment
from fastselfie.system.accelerator import choose_accelerator
from fastselfie.system.console import say
from fastselfie.system.files import write_atomically
from fastselfie.system.resources import usable_cores
from fastselfie.system.trace_ranges import trace_range
from fastselfie.training.metrics_log import RunLog
from fastselfie.training.pretrain import build_pretraining
from fastselfie.training.step import TrainStep

PAGE, FIGURES, TRACE = "profile.html", "profile.json", "trace.json.gz"
_WARM_UP = 3  # steps before the profiler starts: they use up what was read ahead
_ROUNDS, _SECONDS = 3, 1.0  # for each rate
_OPERATORS = 15
_NETWORK = ("P", "A", "scoring")


def profile_config(config: Config, steps: int, out: Path, target: Target | None) -> dict[str, Any]:
    """Profile pretraining; write profile.html, profile.json and trace.json.gz.

    Args:
        config: Config of the run.
        steps: Number of steps under the profiler.
        out: Folder for the files.
        target: Machine to estimate for as well, or None.

    Returns:
        The figures, as in profile.json.

    Raises:
        UserError: The data cannot be read.
        OSError: `out` cannot be made or written.
    """
    accelerator = choose_accelerator(config.runtime)
    source = open_dataset(config.data, config.seed, labels_needed=False).train
    name, why = choose_loader(config.pretraining_data, source, accelerator.device)
    say(f"{config.name}: device {accelerator.device} ({accelerator.why}), loader {name} ({why})")
    loader = build_loader(source, config.pretraining_data, config.seed, accelerator.device)
    step = build_pretraining(config, accelerator).step
    out.mkdir(parents=True, exist_ok=True)  # before measuring, which may take minutes
    say(f"measuring loader, step and both together, {_ROUNDS} rounds each")
    rates = measure_rates(config, source, loader, step, _ROUNDS, _SECONDS)
    say(f"profiling {steps} steps of {config.pretrain.batch_size} images")
    with closing(loader.stream(0, config.pretrain.batch_size)) as batches:
        trace, measured = _profile_steps(config, step, batches, steps)
    decodes = name not in ("resident", "synthetic")
    threads = min(usable_cores(), decoder_count(config.data.workers)) if decodes else 0
    figures: dict[str, Any] = {
        "config": config.name,
        "steps": steps,
        "batch_size": config.pretrain.batch_size,
        "micro_batch_size": step.micro_batch,
        "log_every": config.pretrain.log_every,
        "device": str(accelerator.device),
        "precision": accelerator.precision.name,
        "compile": accelerator.compile,
        "loader": name,
        "decoding_threads": threads,
        **measured,
        **rates,
    }
    figures["advice"] = advise(_facts(figures, config, source, target is not None))
    per_core = rates["rates"]["loader"]["median"] / threads if threads else None
    figures["plan"] = None if target is None else _plan(config, target, per_core)
    figures["environment"] = environment(accelerator.device)
    # The page last: the files that it links to exist before it does.
    write_atomically(out / TRACE, gzip.compress(json.dumps(trace).encode(), 6))
    write_atomically(out / FIGURES, json.dumps(figures, indent=1) + "\n")
    write_profile_page(out / PAGE, figures, config.to_yaml(), TRACE)
    return figures


def _plan(config: Config, target: Target, per_core: float | None) -> dict[str, Any]:
    return {
        **asdict(estimate(config, target, per_core)),
        "target": target._asdict(),
        "measured_per_core": per_core,
        "assumed": ASSUMED._asdict(),
    }


def _profile_steps(
    config: Config, step: TrainStep, batches: Iterator[Batch], steps: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run the loop of `fit` under torch.profiler, without evaluation and checkpoints.

    Returns:
        The trace, and figures. Memory curves are (seconds, bytes).
    """
    cuda = step.accelerator.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    process: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as scratch:
        with RunLog(Path(scratch), "profile", steps, 0) as log:
            for number in range(_WARM_UP):
                step(number, next(batches))
            step.read()
            standing = 0 if cuda else _standing_bytes(step)
            with profile(activities=activities, profile_memory=True) as profiler:
                start = time.perf_counter()
                with record_function(WINDOW):
                    for done in range(1, steps + 1):
                        with trace_range("waiting"):
                            batch = next(batches)
                        step(_WARM_UP + done, batch)
                        with trace_range("logging"):
                            log.advance(done)
                            if done % config.pretrain.log_every == 0:
                                means = step.read()
                                log.write(done, loss=means.loss, accuracy=means.accuracy)
                        process.append((time.perf_counter() - start, _resident_bytes()))
                    if cuda:
                        torch.cuda.synchronize()  # the window must contain all work
                seconds = time.perf_counter() - start
        path = Path(scratch) / "trace.json"
        profiler.export_chrome_trace(str(path))
        trace: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return trace, {
        "ms_a_step": 1000 * seconds / steps,
        "shares": _shares(trace, step.accelerator.compile is not None),
        "operators": _operators(profiler, steps, cuda),
        "memory": {
            "tensors": [(at, standing + held) for at, held in memory_curve(trace, cuda)],
            "process": [(at, held) for at, held in process if held],
        },
        "profiled_images_per_s": steps * config.pretrain.batch_size / seconds,
    }


def _shares(trace: dict[str, Any], compiled: bool) -> dict[str, float]:
    """Return the share of each phase; the network of a compiled step is a single phase."""
    shares = phase_shares(trace)
    if compiled:
        shares["forward"] += sum(shares.pop(name) for name in _NETWORK)
    else:
        shares[OTHER] += shares.pop("forward")
    return shares


def _operators(profiler: profile, steps: int, cuda: bool) -> list[dict[str, Any]]:
    """Return the operators with the most self time on the device that computes."""
    rows = []
    for event in profiler.key_averages():
        # Kernels on a GPU have rows too; their time is counted with their operators.
        if event.is_user_annotation or event.device_type != DeviceType.CPU:
            continue
        spent = event.self_device_time_total if cuda else event.self_cpu_time_total
        calls, spent = event.count / steps, spent / 1000 / steps
        rows.append({"name": event.key, "calls_a_step": calls, "ms_a_step": spent})
    return sorted(rows, key=lambda row: -row["ms_a_step"])[:_OPERATORS]


def _standing_bytes(step: TrainStep) -> int:
    """Return the bytes of weights, buffers and momentum, which a CPU profile does not count."""
    state = (v for values in step.optimizer.state.values() for v in values.values())
    tensors = [*step.model.state_dict().values(), *(v for v in state if torch.is_tensor(v))]
    return sum(t.untyped_storage().nbytes() for t in tensors)


def _resident_bytes() -> int:
    """Return the resident memory of this process; 0 if the system does not tell."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _facts(figures: dict[str, Any], config: Config, source: Source, planned: bool) -> Facts:
    rates = {name: found["median"] for name, found in figures["rates"].items()}
    idle = ("waiting", "copy", "logging", OTHER)
    share, phase = max((s, name) for name, s in figures["shares"].items() if name not in idle)
    return Facts(
        loader=figures["loader"],
        loader_rate=rates["loader"],
        step_rate=rates["step"],
        e2e_rate=rates["e2e"],
        threads=figures["decoding_threads"],
        cores=usable_cores(),
        device=figures["device"].partition(":")[0],
        compiled=figures["compile"] is not None,
        image_size=config.data.image_size,
        long_side=_long_side(source) if figures["loader"] != "synthetic" else None,
        phase=phase,
        phase_share=share,
        planned=planned,
    )


def _long_side(source: Source) -> float | None:
    """Return the mean long side of the JPEGs of a .beton file, in pixels."""
    if not isinstance(source, BetonSource):
        return None
    reader, samples = source.reader, source.indices
    if (reader.mode[samples] == IMAGE_MODES["raw"]).any():
        return None
    return float(np.maximum(reader.width[samples], reader.height[samples]).mean())
