"""The house: who may import whom, read from the source with ast."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter

import pytest
from conftest import REPOSITORY

PACKAGE = REPOSITORY / "fastselfie"

FLOORS = {
    "kernels": 0,
    "errors": 0,
    "atomic": 0,
    "interrupt": 0,
    "onlyone": 0,
    "config": 0,
    "configfile": 0,
    "rng": 0,
    "optim": 0,
    "device": 0,
    "distributed": 0,
    "phases": 0,
    "models": 1,
    "data": 2,
    "boards": 2,
    "checkpoint": 2,
    "log": 2,
    "saver": 2,
    "memory": 3,
    "average": 3,
    "guard": 3,
    "step": 3,
    "stage": 3,
    "loop": 3,
    "evaluate": 3,
    "monitor": 3,
    "doctor": 4,
    "measure": 4,
    "plan": 4,
    "pretrain": 4,
    "finetune": 4,
    "profiling": 4,
    "report": 4,
    "replay": 4,
    "run": 4,
    "reproduce": 4,
    "trained": 4,
    "export": 4,
    "features": 4,
    "predict": 4,
    "cli": 5,
    "__main__": 5,
}
KERNELS = sorted((REPOSITORY / "kernels").rglob("*.py"))
FILES = [p for p in sorted(PACKAGE.rglob("*.py")) if "kernels" not in p.parts]


def module_of(path):
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path):
    """Every module that a file names in an import, at any depth of the file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def floor_of(module):
    parts = module.split(".")
    # `from fastselfie import rng` names the package too: that is no floor.
    return FLOORS.get(parts[1], 0) if len(parts) > 1 else 0


def test_every_module_has_a_floor():
    modules = {module_of(p).split(".")[1] for p in FILES if module_of(p) != "fastselfie"}
    assert modules | {"kernels"} == set(FLOORS)


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_only_from_its_floor_or_below(path):
    mine = floor_of(module_of(path))
    ours = [name for name in imports_of(path) if name.split(".")[0] == "fastselfie"]
    assert not [name for name in ours if floor_of(name) > mine]


def test_no_import_goes_in_a_circle():
    modules = {module_of(path): path for path in FILES}
    # `from fastselfie.cli import data`, in that package's own file, names the package too.
    graph = {
        name: imports_of(path) & set(modules) - {"fastselfie", name}
        for name, path in modules.items()
    }
    list(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("path", KERNELS, ids=lambda p: p.name)
def test_kernels_are_a_leaf(path):
    outside = [n for n in imports_of(path) if n.split(".")[0] in ("fastselfie", "benchmarks")]
    assert all(name.startswith("fastselfie.kernels") for name in outside)


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_only_the_command_line_parses_argv(path):
    if "cli" not in path.parts:
        assert not imports_of(path) & {"argparse", "typer", "click", "sys.argv"}
        assert "sys.argv" not in path.read_text(encoding="utf-8")


def test_files_are_short():
    lengths = {p.name: len(p.read_text(encoding="utf-8").splitlines()) for p in FILES + KERNELS}
    assert not {name: n for name, n in lengths.items() if n > 400}
    assert lengths["pretrain.py"] <= 250
    assert lengths["finetune.py"] <= 250
    assert "utils.py" not in lengths


def test_nothing_imports_the_benchmarks():
    for path in FILES + KERNELS:
        assert not [n for n in imports_of(path) if n.split(".")[0] == "benchmarks"]


def test_every_package_is_listed_in_setup():
    """The wheel lacks what setup.py does not list."""
    listed = (REPOSITORY / "setup.py").read_text(encoding="utf-8")
    folders = {p.parent for p in FILES} | {p.parent for p in KERNELS}
    for folder in folders:
        name = ".".join(folder.relative_to(REPOSITORY).parts)
        name = name if name.startswith("fastselfie") else f"fastselfie.{name}"
        assert f'"{name}"' in listed


def test_the_command_line_starts_light():
    """Of all packages only those that parse a command line: each command imports its own."""
    code = "import sys, fastselfie.cli; print(*{name.partition('.')[0] for name in sys.modules})"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    project = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    packages = set(re.findall(r'^ +"([a-z0-9-]+)>=', project, re.MULTILINE)) | {"PIL", "yaml"}
    packages |= {"pyarrow", "triton", "onnx", "nvidia", "ffcv", "cv2", "matplotlib", "wandb"}
    assert {"torch", "numpy", "pydantic"} <= packages
    assert not set(out.stdout.split()) & (packages - {"typer", "rich"})
