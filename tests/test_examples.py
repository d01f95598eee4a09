"""Each program of examples/ runs as its first lines say, in an empty folder."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import REPOSITORY

pytestmark = pytest.mark.slow

EXAMPLES = sorted((REPOSITORY / "examples").glob("*.py"))


def run(path, folder, cwd):
    command = [sys.executable, path, folder]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_runs(image_folder, tmp_path, path):
    assert run(path, image_folder, tmp_path)
    assert len(path.read_text(encoding="utf-8").splitlines()) < 100


def test_the_training_example_resumes(image_folder, tmp_path):
    (path,) = (path for path in EXAMPLES if path.name == "supervised.py")
    assert "epoch 0: loss" in run(path, image_folder, tmp_path)
    assert "epoch 0" not in run(path, image_folder, tmp_path)
