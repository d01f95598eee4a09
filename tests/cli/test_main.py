"""The program itself: versions, usage mistakes, what it sets before torch is imported."""

from __future__ import annotations

import os

from fastselfie import __version__


def test_doctor_and_version(cli):
    result = cli("doctor")
    assert result.status == 0
    for words in ("torch", "device", "disk", "shared memory", "matplotlib"):
        assert words in result.out
    assert cli("--version").out.strip() == __version__


def test_openmp_threads_wait_without_spinning(cli, monkeypatch):
    """`main` sets the variable before torch is imported."""
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    cli("--version")
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    cli("--version")
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"


def test_the_memory_of_a_gpu_is_expandable_unless_the_user_says_otherwise(cli, monkeypatch):
    ours, names = "PYTORCH_CUDA_ALLOC_CONF", ("PYTORCH_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
    for name in (ours, *names):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(ours, "")  # so that it is removed afterwards
    monkeypatch.delenv(ours)
    cli("--version")
    assert os.environ[ours] == "expandable_segments:True"
    monkeypatch.setenv(ours, "max_split_size_mb:64")
    cli("--version")
    assert os.environ[ours] == "max_split_size_mb:64"
    for name in names:
        monkeypatch.delenv(ours, raising=False)
        monkeypatch.setenv(name, "max_split_size_mb:64")
        cli("--version")
        assert ours not in os.environ
        monkeypatch.delenv(name)


def test_usage_mistakes_have_status_2(cli):
    assert cli("train").status == 2
    assert cli("tarin").status == 2
