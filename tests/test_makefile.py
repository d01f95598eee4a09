"""What `make` says of a machine that lacks packages, before it builds anything."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from conftest import REPOSITORY

PYTHON, BUILD = "python3 python3-venv", "g++ python3-dev libjpeg-dev"
FFCV = "libturbojpeg0-dev libopencv-dev pkg-config"


@pytest.fixture
def accelerator(tmp_path):
    """A folder with the Makefile, and what runs a goal there with nothing but some programs.

    scripts: those of the shell, by a program's name. What is left in the folder is returned too.
    """
    programs, folder = tmp_path / "bin", tmp_path / "clone"
    programs.mkdir()
    folder.mkdir()
    shutil.copy(REPOSITORY / "Makefile", folder)

    def run(goal, scripts=(), user=1000):
        for name in ("sh", "make"):
            if not (programs / name).exists():
                (programs / name).symlink_to(shutil.which(name))
        for name, script in {"id": f"echo {user}", **dict(scripts)}.items():
            path = programs / name
            path.write_text(f"#!{programs / 'sh'}\n{script}\n")
            path.chmod(0o755)
        command = [str(programs / "make"), *goal.split(), "CXX=g++"]
        environment = {"PATH": str(programs)}
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        return done, [path.name for path in folder.iterdir()]

    return run


@pytest.mark.parametrize(
    ("goal", "packages"),
    [
        ("quickstart", f"{PYTHON} {BUILD} curl"),
        ("quickstart DATA=photos", f"{PYTHON} {BUILD}"),
        ("check", f"{PYTHON} {BUILD}"),
        ("test", f"{PYTHON} {BUILD} chromium {FFCV}"),
        ("quickstart test", f"{PYTHON} {BUILD} chromium curl {FFCV}"),
        ("bench", f"{PYTHON} {BUILD} {FFCV} ffmpeg"),
        ("dist", f"{PYTHON} {BUILD}"),
        ("aarch64", f"{PYTHON} {BUILD} g++-aarch64-linux-gnu qemu-user"),
    ],
)
def test_a_user_without_root_learns_all_packages_in_one_line(accelerator, goal, packages):
    done, left = accelerator(goal)
    assert done.returncode == 2
    first, *rest = done.stderr.splitlines()
    named = first.removeprefix("error: the system lacks packages: sudo apt-get install ")
    assert set(named.split()) == set(packages.split())
    assert not [line for line in rest if not line.startswith("make: ***")]
    assert left == ["Makefile"]


def test_what_is_there_is_not_named(accelerator):
    """The compiler is, and lacks a header; a browser of another name does."""
    programs = dict.fromkeys(("python3", "pkg-config", "google-chrome"), "exit 0")
    done, _ = accelerator("test", {**programs, "g++": "exit 1"})
    assert done.stderr.splitlines()[0].endswith(f"sudo apt-get install {BUILD}")


def test_an_old_python_is_said(accelerator):
    done, _ = accelerator("test", {"python3": "exit 1"})
    assert done.stderr.startswith("error: python3 is older than 3.10: make PYTHON=python3.11\n")


def test_root_gets_what_is_missing_at_once(accelerator, tmp_path):
    """apt-get brings it: here it writes down what it was asked for, and makes a compiler."""
    calls, programs = tmp_path / "calls", tmp_path / "bin"
    apt = (
        f'echo "$@" >> {calls}; printf "#!{programs}/sh\\n" > {programs}/g++;'
        f"cp {programs}/g++ {programs}/chromium; chmod +x {programs}/g++ {programs}/chromium"
    )
    for name in ("cp", "chmod"):
        programs.joinpath(name).symlink_to(shutil.which(name))
    done, _ = accelerator("system NEEDS_system=browser", {"python3": "", "apt-get": apt}, 0)
    assert (done.returncode, done.stderr) == (0, "")
    _, installed = calls.read_text().splitlines()
    assert installed == f"install -qy --no-install-recommends {BUILD} chromium"


def test_root_is_told_what_could_not_be_had(accelerator):
    done, left = accelerator("check", {"python3": "exit 0", "apt-get": "exit 100"}, 0)
    assert done.returncode == 2
    assert f"sudo apt-get install {BUILD}" in done.stderr
    assert left == ["Makefile"]
