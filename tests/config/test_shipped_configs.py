"""The configs that come with the package: found by name where it is installed, listed, copied."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from conftest import REPOSITORY, refused

from fastselfie.config.load import find_config, load_config, shipped_configs

NAMES = ["cifar10", "cifar10-slim", "in224", "in32", "quickstart"]

# build_py compiles nothing, so what compiles may be missing.
PYBIND11 = """
from setuptools import Extension
from setuptools.command.build_ext import build_ext

def Pybind11Extension(name, sources, cxx_std, **settings):
    return Extension(name, sources, **settings)
"""


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Run in a folder without configs/, as a user of a wheel does."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_a_wheel_has_them(tmp_path, elsewhere):
    stub = tmp_path / "stub" / "pybind11"
    stub.mkdir(parents=True)
    (stub / "setup_helpers.py").write_text(PYBIND11)
    (stub / "__init__.py").touch()
    wheel = tmp_path / "wheel"
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(wheel)],
        cwd=REPOSITORY, check=True, env={**os.environ, "PYTHONPATH": str(stub.parent)},
    )  # fmt: skip
    code = (
        "from fastselfie.config.load import load_config, shipped_configs;"
        "print(__import__('fastselfie').__file__, *shipped_configs(), load_config('in224').name)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": str(wheel)},
    )  # fmt: skip
    assert done.stdout.split() == [str(wheel / "fastselfie" / "__init__.py"), *NAMES, "in224"]
    for stub_file in ("py.typed", "kernels/host/_host.pyi", "kernels/jpeg/_jpeg.pyi"):
        assert (wheel / "fastselfie" / stub_file).is_file()


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("name", NAMES)
def test_each_is_found_by_its_name(name):
    assert load_config(name) == load_config(REPOSITORY / "configs" / f"{name}.yaml")


def test_a_file_comes_before_a_shipped_config(elsewhere, tiny_yaml):
    shipped = find_config("in224")
    (elsewhere / "in224").mkdir()  # a run's folder, say
    assert find_config("in224") == shipped
    (elsewhere / "in224.yaml").write_text(tiny_yaml.read_text())
    assert load_config("in224").name == "tiny"
    (elsewhere / "in224").rmdir()
    (elsewhere / "in224").write_text("name: mine")
    assert load_config("in224").name == "mine"
    assert load_config("in224.yaml").name == "tiny"


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("command", ["train", "reproduce", "profile"])
def test_every_command_takes_names_and_tells_them(cli, command):
    refused(cli(command, "in225"), "error: in225: no such file", "pass a YAML file or", *NAMES)
    refused(cli(command, "configs/in224.yaml"), "configs/in224.yaml: no such file", *NAMES)
    refused(cli(command, "in224", "data.workers=many"), "data.workers", "many")


def test_paths_inside_are_of_the_folder_one_stands_in(cli, elsewhere):
    """As before: not of the folder of the config."""
    result = cli("train", "quickstart", "--dry-run")
    assert result.status == 2
    assert "data/fashion-mnist: no such file or folder" in result.err
    assert load_config("quickstart").data.train == "data/fashion-mnist"


def test_they_are_listed_with_their_first_line(cli):
    result = cli("configs")
    assert (result.status, result.err) == (0, "")
    for name in NAMES:
        assert name in result.out
    assert "A slim Selfie on Fashion-MNIST" in result.out


def test_one_is_printed_or_copied_and_nothing_overwritten(cli, elsewhere):
    text = shipped_configs()["in32"].read_text()
    assert cli("configs", "in32").out == text
    copied = cli("configs", "in32", "--out", "new/mine.yaml")
    assert copied.status == 0
    assert "fastselfie train new/mine.yaml" in copied.out
    mine = elsewhere / "new" / "mine.yaml"
    assert mine.read_text() == text
    mine.write_text("name: changed")
    refused(cli("configs", "in32", "--out", mine), "mine.yaml: File exists: pass another path")
    assert mine.read_text() == "name: changed"
    refused(cli("configs", "in32", "--out", elsewhere), "File exists")
    refused(cli("configs", "in23", "--out", "a.yaml"), "in23: not a shipped config", *NAMES)
    refused(cli("configs", "--out", "a.yaml"), "--out a.yaml: name the config to copy", *NAMES)
    assert not (elsewhere / "a.yaml").exists()
