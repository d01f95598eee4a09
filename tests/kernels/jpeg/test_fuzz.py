"""The engine under AddressSanitizer and UBSan: short seeded campaigns of benchmarks/fuzz.py.

The long ones are committed in benchmarks/results/fuzz.json.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
from conftest import REPOSITORY

pytestmark = pytest.mark.slow

INPUTS = 4000


def campaign(folder, *options):
    result = folder / "fuzz.json"
    command = [sys.executable, REPOSITORY / "benchmarks" / "fuzz.py", *options, "--json", result]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(result.read_text())["campaigns"][0]


def test_a_short_campaign_finds_nothing(tmp_path):
    found = campaign(tmp_path, "--inputs", str(INPUTS))
    assert INPUTS <= found["inputs"] < INPUTS + 100
    # Mutations leave some files readable, else only the parser would be tested.
    assert found["calls_succeeded"] > INPUTS / 10
    assert found["batches_closed_early"] > 0


def test_a_search_finds_nothing(tmp_path):
    """libFuzzer for a minute; without clang, our own mutations from another seed."""
    if shutil.which("clang++"):
        found = campaign(tmp_path, "--libfuzzer", "60")
        assert found["covered_edges"] > 1000
        assert found["sanitizers"] == "fuzzer,address,undefined"
    else:
        found = campaign(tmp_path, "--inputs", str(5 * INPUTS), "--seed", "2")
    assert found["inputs"] > INPUTS
    assert found["faults"] == 0


def test_the_committed_campaign_was_clean():
    path = REPOSITORY / "benchmarks" / "results" / "fuzz.json"
    campaigns = {c["sanitizers"]: c for c in json.loads(path.read_text())["campaigns"]}
    assert campaigns["address,undefined"]["inputs"] >= 100_000
    assert "thread" in campaigns
    assert not any(c["faults"] for c in campaigns.values())
