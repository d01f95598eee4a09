"""The doctor on extras that are there and extras that are not, and what a plan makes of it."""

from __future__ import annotations

import importlib.metadata

import pytest

from fastselfie import doctor, plan
from fastselfie.doctor import Finding


def test_both_peers_are_found_with_their_versions():
    found = {finding.name: finding for finding in doctor.examine()}
    for name, distribution in (("ffcv", "ffcv"), ("dali", "nvidia-dali-cuda130")):
        assert found[name].state == "ok"
        assert found[name].text.startswith(importlib.metadata.version(distribution))


@pytest.mark.parametrize("hidden", ["dali", "nvidia"])
def test_without_an_extra_it_gives_the_command(monkeypatch, hidden):
    """Where no package of NVIDIA's is installed, the search for nvidia.dali raises."""

    def find(name):
        if hidden == "nvidia" and name == "nvidia.dali":
            raise ModuleNotFoundError(name)

    monkeypatch.setattr(doctor.importlib.util, "find_spec", find)
    found = {finding.name: finding for finding in doctor.examine()}
    assert found["dali"].state == found["ffcv"].state == "missing"
    assert "fastselfie[dali]" in found["dali"].mend
    assert "libturbojpeg0-dev" in found["ffcv"].mend


def test_a_run_lacks_only_the_loader_that_it_uses(monkeypatch, tmp_path):
    findings = [Finding("ffcv", "missing", "not installed", "pip"), Finding("gpu", "bad", "x", "y")]
    monkeypatch.setattr(plan, "examine", lambda: findings)
    assert [line[:4] for line in plan._lacks(tmp_path, 0, "auto")] == ["gpu:"]
    assert [line[:4] for line in plan._lacks(tmp_path, 0, "ffcv")] == ["ffcv", "gpu:"]
