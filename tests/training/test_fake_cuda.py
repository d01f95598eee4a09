"""The step on a GPU that is not there: nothing waits for it, and no tensor is elsewhere.

A program with a small C++ library, which is compiled here, runs all cases: see helpers/fake_cuda.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY
from helpers import fake_cuda
from helpers.fake_cuda.cases import FAULTS, STEPS

pytestmark = pytest.mark.slow

LIMIT = 1200  # seconds, of a hang


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each case raised, or None."""
    hooks, root = tmp_path_factory.mktemp("hooks") / "hooks.so", Path(torch.__file__).parent
    compiler = sysconfig.get_config_var("CXX").split()[0]
    source = Path(fake_cuda.__file__).with_name("hooks.cpp")
    include, libraries = root / "include", root / "lib"
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    subprocess.run(
        [os.environ.get("CXX", compiler), "-std=c++20", "-shared", "-fPIC", abi, source, "-o",
         hooks, f"-I{include}", f"-L{libraries}", f"-Wl,-rpath,{libraries}", "-lc10",
         "-ltorch_cpu"],
        check=True, timeout=LIMIT,
    )  # fmt: skip
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
