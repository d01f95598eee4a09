"""The README says what the result files say, and names only files and commands that exist."""

from __future__ import annotations

import re
import subprocess
import sys

from conftest import REPOSITORY

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def test_the_tables_are_those_of_the_results():
    command = [sys.executable, "benchmarks/readme.py", "--check"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_links_and_configs_exist():
    named = re.findall(r"\]\((?!https?:)([^)#]+)\)", README) + re.findall(
        r"configs/\w+\.yaml", README
    )
    assert named
    assert [name for name in named if not (REPOSITORY / name).exists()] == []


def test_make_targets_exist():
    targets = re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(), flags=re.MULTILINE)
    assert set(re.findall(r"^make ([a-z]+)", README, flags=re.MULTILINE)) <= set(targets)
