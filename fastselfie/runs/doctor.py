"""A check of this machine: what it has, what is missing, and the command that fixes it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from fastselfie import __version__
from fastselfie.config import RuntimeConfig
from fastselfie.data.loaders.backends import INSTALL
from fastselfie.kernels.impl import unavailable
from fastselfie.system.accelerator import choose_device, choose_precision
from fastselfie.system.resources import total_memory, usable_cores

_MIB = 2**20
# Packages that only some configs and datasets need; those say so themselves.
ON_REQUEST = ("pyarrow", "wandb", "onnx", "onnxruntime", "ray")


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        name: of what was checked.
        state: ok, missing (optional) or bad.
        text: what was found.
        fix: the command that fixes it.
    """

    name: str
    state: str
    text: str
    fix: str = ""


def environment(device: torch.device) -> dict[str, str]:
    """Versions and hardware that a result depends on, for reports and benchmark files."""
    facts = {
        "fastselfie": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.release()}",
        "processor": _processor(),
        "cores": str(usable_cores()),
        "threads": str(torch.get_num_threads()),
        "memory": f"{total_memory(torch.device('cpu')) / 2**30:.1f} GiB",
        "device": "cpu",
    }
    if device.type != "cuda":
        return facts
    major, minor = torch.cuda.get_device_capability(device)
    return facts | {
        "device": torch.cuda.get_device_name(device),
        "capability": f"sm_{major}{minor}",
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),  # type: ignore[no-untyped-call]
        "driver": _driver(),
    }


def _driver() -> str:
    """Version of NVIDIA's driver, from its kernel module."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        return "unknown"
    found = re.search(r"Kernel Module[^\n]*?\s(\d+(?:\.\d+)+)\s", text)
    return found[1] if found else "unknown"


def examine() -> list[Finding]:
    """Check the machine; changes nothing."""
    runtime = RuntimeConfig()
    device, why = choose_device(runtime)
    precision = choose_precision(runtime, device)
    facts = environment(device)
    findings = [
        Finding("python", "ok", facts["python"]),
        Finding("torch", "ok", facts["torch"]),
        Finding("device", "ok", f"{device} ({why}), {precision.name} ({precision.why})"),
        Finding("cpu", "ok", f"{facts['processor']}, {facts['cores']} cores, {facts['memory']}"),
    ]
    if torch.version.cuda is None and Path("/dev/nvidiactl").exists():
        text = "there is a GPU, but this torch is a CPU build"
        findings.append(Finding("gpu", "bad", text, "pip install --force-reinstall torch"))
    findings += [_disk(Path.cwd()), _shared_memory()]
    findings += [
        _package("matplotlib", "the curves of report.html", "pip install 'fastselfie[report]'"),
        _package("tensorboard", "TensorBoard logs", "pip install 'fastselfie[report]'"),
        _package("ffcv", "data.loader ffcv", INSTALL["ffcv"]),
        _triton(device),
        _package("dali", "data.loader dali", INSTALL["dali"], module="nvidia.dali"),
        _package("pyarrow", "parquet files", "pip install 'fastselfie[parquet]'"),
        _package("wandb", "log.wandb", "pip install 'fastselfie[wandb]'"),
        _package("onnx", "export --format onnx", "pip install 'fastselfie[export]'"),
        _package("ray", "--engine ray", "pip install 'fastselfie[ray]'"),
        _package("onnxruntime", "the check of an ONNX file", "pip install 'fastselfie[export]'"),
    ]
    return findings


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    found = re.search(r"^model name[ \t]*:[ \t]*(.*)$", text, re.MULTILINE)
    return found[1] if found else platform.machine()


def _disk(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    text = f"{free / 2**30:,.1f} GiB free in {folder}"
    if free < 1024 * _MIB:
        return Finding("disk", "bad", text, "free some space, or train with --out elsewhere")
    return Finding("disk", "ok", text)


def _shared_memory() -> Finding:
    """Check /dev/shm: DataLoader workers pass batches there; containers limit it to 64 MiB."""
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return Finding("shared memory", "ok", "not used here")
    size = shutil.disk_usage(folder).total
    text = f"{size / _MIB:,.0f} MiB in /dev/shm"
    if size >= 1024 * _MIB:
        return Finding("shared memory", "ok", text)
    fix = "docker run --shm-size=8g, or data.workers=0"
    return Finding("shared memory", "bad", f"{text}: too little for data.loader folder", fix)


def _triton(device: torch.device) -> Finding:
    found = _package("triton", "the fused kernels on a GPU", "pip install 'fastselfie[triton]'")
    if found.state != "ok" or device.type != "cuda" or not (reason := unavailable(device)):
        return found
    fix = "runtime.kernels=reference trains without it"
    return Finding("triton", "missing", f"not used: {reason}", fix)


def _package(name: str, use: str, fix: str, module: str | None = None) -> Finding:
    try:
        found = importlib.util.find_spec(module or name)
    except ModuleNotFoundError:  # the parent of a dotted module is missing
        found = None
    if found is None:
        return Finding(name, "missing", f"not installed: {use}", fix)
    return Finding(name, "ok", f"{_version(module or name)}: {use}")


def _version(module: str) -> str:
    # The name of DALI's distribution ends in the CUDA version it was built for.
    name = module.replace(".", "-")
    versions = {d.name.lower(): d.version for d in importlib.metadata.distributions()}
    of_build = (version for each, version in versions.items() if each.startswith(f"{name}-"))
    return versions.get(name) or next(of_build, "unknown")
