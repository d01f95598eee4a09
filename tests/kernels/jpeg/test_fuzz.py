"""The engine under AddressSanitizer and UBSan: a short seeded campaign of benchmarks/fuzz.py.

The long one is committed in benchmarks/results/fuzz.json.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from conftest import REPOSITORY

pytestmark = pytest.mark.slow

INPUTS = 4000


def test_a_short_campaign_finds_nothing(tmp_path):
    result = tmp_path / "fuzz.json"
    command = [sys.executable, "benchmarks/fuzz.py", "--inputs", str(INPUTS), "--json", str(result)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    campaign = json.loads(result.read_text())["campaigns"][0]
    assert INPUTS <= campaign["inputs"] < INPUTS + 100
    # Mutations leave some files readable, else only the parser would be tested.
    assert campaign["calls_succeeded"] > INPUTS / 10
    assert campaign["batches_closed_early"] > 0


def test_the_committed_campaign_was_clean():
    path = REPOSITORY / "benchmarks" / "results" / "fuzz.json"
    campaigns = {c["sanitizers"]: c for c in json.loads(path.read_text())["campaigns"]}
    assert campaigns["address,undefined"]["inputs"] >= 100_000
    assert "thread" in campaigns
    assert not any(c["faults"] for c in campaigns.values())
