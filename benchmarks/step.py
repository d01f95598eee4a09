"""Measure the images/s of our training step, of its variants and of straightforward code.

python benchmarks/step.py --config configs/cifar10.yaml --json OUT
python benchmarks/step.py --config configs/cifar10.yaml --isa AVX2 --beside 1 --json OUT

Every contender has its own process, random pixels and the same initial weights. Rounds alternate;
with --beside, other programs are busy meanwhile. torch.compile has compiled before the clock runs,
with an empty cache: start_s is the time from the start of the process to the end of its first step,
again_s the same for a second process. losses are those of ours, of ours in fp32 and of the
straightforward code, which is fp32, for one batch without dropout.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from support.arguments import Parser, above_zero, chosen, result_file
from support.conditions import command, environment
from support.recipes import CONTEXT
from support.rounds import Worker, alternate, spread
from support.script import run_script, say
from support.showing import print_step_table
from support.step_job import BASELINE, StepJob

from fastselfie.errors import UserError

# Each is our step with one thing turned round, so that a reader sees what it buys.
SWITCHES: dict[str, tuple[str, ...]] = {
    "ours": (),
    "NCHW": ("runtime.channels_last=false",),
    "compiled": ("runtime.compile=default",),
    "CUDA graphs": ("runtime.compile=default", "runtime.cuda_graphs=true"),
    "fp32": ("runtime.precision=fp32",),
    "bf16": ("runtime.precision=bf16",),
    "checkpointed": ("runtime.activation_checkpointing=true",),
    "pooled query": ("model.query=pooled",),
    "with context": tuple(CONTEXT),
    "reference kernels": ("runtime.kernels=reference",),
}
_GPU_ONLY = {"CUDA graphs"}
# What oneDNN can be limited to, by its variable ONEDNN_MAX_CPU_ISA, and what the processor needs.
ISAS = {
    "AVX2": "avx2",
    "AVX512_CORE": "avx512_bw",
    "AVX512_CORE_BF16": "avx512_bf16",
    "AVX512_CORE_AMX": "amx_bf16",
}


def main() -> None:
    options = _parse()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if options.isa:
        _limit_onednn(options.isa)
    names = (
        chosen("--contenders", options.contenders, (BASELINE, *SWITCHES))
        if options.contenders
        else _all_contenders(options)
    )
    jobs = [
        StepJob(
            name,
            options.config,
            (*_sets(options), *SWITCHES.get(name, ())),
            options.batch,
            options.threads,
        )
        for name in names
    ]
    began, load = time.strftime("%Y-%m-%d %H:%M:%S %z"), os.getloadavg()
    from support.step_contenders import facts as measure_facts

    facts = measure_facts(options.config, jobs[0].overrides)
    with ExitStack() as stack:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = stack.enter_context(TemporaryDirectory())
        workers, started = [], {}
        for job in jobs:
            workers.append(stack.enter_context(Worker(job)))
            started[job.name] = {"start_s": _first_step(workers[-1])}
        with _busy(options.beside):
            found = alternate(workers, options.rounds, options.seconds, say)
        for job in jobs:
            if job.name == "compiled":
                with Worker(job) as again:
                    started[job.name]["again_s"] = _first_step(again)
    result: dict[str, Any] = {"config": Path(options.config).stem, "batch": options.batch, **facts}
    result["results"] = [
        {
            "step": name,
            "images_per_s": spread([r.rate for r in rounds]),
            "cpu_ms_per_image": spread([r.cpu_ms for r in rounds])["median"],
            "peak_rss_mb": round(max(r.peak_mb for r in rounds), 1),
            "peak_gpu_mb": round(max(r.gpu_mb for r in rounds), 1),
            "model_gflops_per_s": spread([r.rate * facts["gflop_per_image"] for r in rounds]),
            # Of what a large product of matrices reaches here, which is what a step could.
            "flop_utilisation": spread(
                [r.rate * facts["gflop_per_image"] / facts["matmul_gflops_per_s"] for r in rounds]
            ),
            "others_cpu": spread([r.others_cpu for r in rounds])["median"],
            **started[name],
        }
        for name, rounds in found.items()
    ]
    first = jobs[0].name
    result["ratios"] = {
        f"{first}/{name}": spread(
            [a.rate / b.rate for a, b in zip(found[first], rounds, strict=True)]
        )
        for name, rounds in found.items()
        if name != first
    }
    result["environment"] = environment(options.threads) | {
        "began": began,
        "load_average": {"start": load, "end": os.getloadavg()},
    }
    result["protocol"] = {
        "command": command(),
        "rounds": options.rounds,
        "seconds_a_round": options.seconds,
        "threads": options.threads,
        "busy_programs_beside": options.beside,
        "onednn_max_cpu_isa": os.environ.get("ONEDNN_MAX_CPU_ISA"),
        "switches": {job.name: job.overrides for job in jobs},
        "notes": (__doc__ or "").split("\n\n")[-1].replace("\n", " ").strip(),
    }
    options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print_step_table(result)


def _parse() -> argparse.Namespace:
    parser = Parser(description=__doc__.splitlines()[0] if __doc__ else None)
    add = parser.add_argument
    add("--config", required=True)
    add("--set", metavar="KEY=VALUE", action="append", default=[], help="of the config, for all")
    add("--batch", type=int, default=16, help="images a step, in one pass")
    add("--contenders", help=f"of {BASELINE}, {', '.join(SWITCHES)}; ratios are of the first")
    add("--threads", type=int, default=2)
    add("--beside", type=int, default=0, metavar="N", help="busy programs meanwhile")
    add("--isa", choices=ISAS, help="the instruction set that oneDNN is limited to")
    add("--rounds", type=int, default=5)
    add("--seconds", type=float, default=4.0, help="the least of a round")
    add("--json", required=True, metavar="OUT")
    options = parser.parse_args()
    above_zero(options, "batch", "threads", "rounds", "seconds")
    if options.beside < 0:
        raise UserError(f"--beside {options.beside}: it must not be below 0")
    options.json = result_file(options.json)
    return options


def _limit_onednn(isa: str) -> None:
    """Raise UserError where the processor has not what `isa` needs: oneDNN would take less."""
    os.environ["ONEDNN_MAX_CPU_ISA"] = isa  # which oneDNN reads once
    import torch

    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    if not capabilities.get(ISAS[isa]):
        raise UserError(f"--isa {isa}: this processor has no {ISAS[isa]}")


@contextmanager
def _busy(count: int) -> Iterator[None]:
    """That many programs, each in a session of its own and at work until this one has ended."""
    work = f"import os\nwhile os.getppid() == {os.getpid()}: pass"
    programs = [
        subprocess.Popen([sys.executable, "-c", work], start_new_session=True) for _ in range(count)
    ]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


def _sets(options: argparse.Namespace) -> list[str]:
    return [
        "data.loader=synthetic",
        f"pretrain.batch_size={options.batch}",
        f"pretrain.micro_batch_size={options.batch}",
        f"runtime.threads={options.threads}",
        "runtime.compile=off",  # auto would compile every contender on a GPU
        *options.set,
    ]


def _first_step(worker: Worker) -> float:
    """Seconds until the process has taken a step."""
    begun = time.perf_counter()
    worker.take(1)
    return round(time.perf_counter() - begun, 1)


def _all_contenders(options: argparse.Namespace) -> list[str]:
    """All that run here and are not ours under another name, in which precision they would be."""
    from fastselfie.config.load import load_config
    from fastselfie.system.accelerator import choose_accelerator

    accelerator = choose_accelerator(load_config(options.config, _sets(options)).runtime)
    without = {"ours", accelerator.precision.name}
    if accelerator.device.type != "cuda":
        without |= _GPU_ONLY
    return ["ours", BASELINE, *(name for name in SWITCHES if name not in without)]


if __name__ == "__main__":
    run_script(main)
