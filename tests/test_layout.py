"""The layout of the source tree, beyond the imports that import-linter checks."""

from __future__ import annotations

import ast
import re
import subprocess
import sys

import pytest
from conftest import REPOSITORY

PACKAGE = REPOSITORY / "fastselfie"

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


@pytest.mark.parametrize("path", KERNELS, ids=lambda p: p.name)
def test_kernels_are_a_leaf(path):
    outside = [n for n in imports_of(path) if n.split(".")[0] in ("fastselfie", "benchmarks")]
    assert all(name.startswith("fastselfie.kernels") for name in outside)


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_only_the_command_line_parses_argv(path):
    if "cli" not in path.parts:
        assert "sys.argv" not in path.read_text(encoding="utf-8")


def test_every_folder_says_what_it_may_import():
    for folder in {path.parent for path in FILES}:
        documentation = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
        assert documentation, folder


def test_files_are_short():
    lengths = {p.name: len(p.read_text(encoding="utf-8").splitlines()) for p in FILES + KERNELS}
    assert not {name: n for name, n in lengths.items() if n > 400}
    assert lengths["pretrain.py"] <= 250
    assert lengths["finetune.py"] <= 250
    assert "utils.py" not in lengths


def test_nothing_imports_the_benchmarks():
    for path in FILES + KERNELS:
        assert not [n for n in imports_of(path) if n.split(".")[0] == "benchmarks"]


def test_the_command_line_starts_light():
    """Of all packages only those that parse a command line: each command imports its own."""
    code = "import sys, fastselfie.cli; print(*{name.partition('.')[0] for name in sys.modules})"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    project = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    packages = set(re.findall(r'^ +"([a-z0-9-]+)>=', project, re.MULTILINE)) | {"PIL", "yaml"}
    packages |= {"pyarrow", "triton", "onnx", "nvidia", "ffcv", "cv2", "matplotlib", "wandb"}
    assert {"torch", "numpy", "pydantic"} <= packages
    assert not set(out.stdout.split()) & (packages - {"typer", "rich"})
