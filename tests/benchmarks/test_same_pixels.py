"""benchmarks/same_pixels.py: this checkout against itself, and its refusals."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import REPOSITORY
from helpers.jpegs import make_jpeg

from fastselfie.kernels import jpeg
from fastselfie.kernels.jpeg import _jpeg

pytestmark = pytest.mark.slow


def compare(*arguments):
    command = [sys.executable, REPOSITORY / "benchmarks" / "same_pixels.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_an_engine_agrees_with_itself(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(make_jpeg("4:2:0", 90, 70))
    (tmp_path / "damaged.JPEG").write_bytes(make_jpeg("4:2:2", 90, 70)[:900])
    done = compare(tmp_path, "--other", REPOSITORY)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("2 photographs as they are and transcoded")
    assert f"{', '.join(jpeg.available_kernels())}: 0 files differ" in done.stdout


def test_a_difference_is_named(tmp_path):
    """The other checkout's engine is this one with one wrong pixel in mirrored images."""
    other = tmp_path / "other" / "fastselfie" / "kernels"
    other.mkdir(parents=True)
    for package in (other.parent, other):
        (package / "__init__.py").touch()
    (other / "jpeg.py").write_text(
        "from importlib.util import module_from_spec, spec_from_file_location\n"
        f"spec = spec_from_file_location('_jpeg', {_jpeg.__file__!r})\n"
        "engine = module_from_spec(spec)\n"
        "spec.loader.exec_module(engine)\n"
        "globals().update({k: v for k, v in vars(engine).items() if not k.startswith('__')})\n"
        "def decode_resized(data, box, size, flip):\n"
        "    pixels = engine.decode_resized(data, box, size, flip)\n"
        "    pixels[-1, -1, 2] ^= flip\n"
        "    return pixels\n"
    )
    folder = tmp_path / "photographs"
    folder.mkdir()
    (folder / "photo.jpg").write_bytes(make_jpeg("4:2:0", 90, 70))
    done = compare(folder, "--other", tmp_path / "other")
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"{folder / 'photo.jpg'}, as it is, {jpeg.available_kernels()[0]}" in done.stdout


def test_mistakes_are_one_line(tmp_path):
    done = compare(tmp_path, "--other", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: the folders hold no JPEG")
    (tmp_path / "photo.jpg").write_bytes(make_jpeg("gray", 9, 7))
    done = compare(tmp_path, "--other", tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --other must be a checkout")
