"""The step on a GPU that is not there: nothing waits for it, and no tensor is elsewhere.

A program with a small C++ library, which is compiled here, runs all cases: see helpers/fake_cuda.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from conftest import REPOSITORY
from helpers.fake_cuda.build import LIMIT, build_hooks
from helpers.fake_cuda.cases import FAULTS, STEPS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each case raised, or None."""
    hooks = build_hooks(tmp_path_factory.mktemp("hooks"))
    paths = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
    variables = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "helpers.fake_cuda", hooks, *STEPS, *FAULTS],
        env={**variables, "PYTHONPATH": paths}, stdout=subprocess.PIPE, check=True, timeout=LIMIT,
    )  # fmt: skip
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", STEPS)
def test_a_step_waits_for_nothing_and_stays_on_the_gpu(found, name):
    assert found[name] is None


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found(found, name):
    assert FAULTS[name][1] in str(found[name])
