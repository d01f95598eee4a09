"""The tables of the README and of docs/ are current; the README names only what exists."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import pytest
from conftest import REPOSITORY

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def test_the_tables_are_those_of_the_results():
    command = [sys.executable, "benchmarks/readme.py", "--check"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", ["README.md", "docs/benchmarks.md"])
def test_a_changed_number_is_found(page, tmp_path):
    for name in ("README.md", "docs", "benchmarks", "fastselfie", "kernels", "configs"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    top = page.split("/")[0]
    (tmp_path / top).unlink()
    copy = shutil.copytree if (REPOSITORY / top).is_dir() else shutil.copy
    copy(REPOSITORY / top, tmp_path / top)
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    changed, count = re.subn(r"(\| native \| )[\d,]+ \(", r"\g<1>999 (", text)
    assert count == 1
    (tmp_path / page).write_text(changed, encoding="utf-8")
    command = [sys.executable, "benchmarks/readme.py", "--check"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"{page} differs from benchmarks/results")


def test_the_readme_is_one_page():
    assert len(README.splitlines()) <= 150


def test_links_and_configs_exist():
    named = re.findall(r"\]\((?!https?:)([^)#]+)\)", README) + re.findall(
        r"configs/\w+\.yaml", README
    )
    assert named
    assert [name for name in named if not (REPOSITORY / name).exists()] == []


def test_make_targets_exist():
    targets = re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(), flags=re.MULTILINE)
    assert set(re.findall(r"^make ([a-z]+)", README, flags=re.MULTILINE)) <= set(targets)
