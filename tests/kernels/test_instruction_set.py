"""The choice of an instruction set, which both extension modules make in the same way."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from fastselfie.kernels import host, jpeg

MODULES = {"host": host, "jpeg": jpeg}


@pytest.fixture(autouse=True)
def _restore_kernels():
    yield
    for module in MODULES.values():
        module.select_kernels("auto")


def test_both_modules_have_the_same_sets():
    assert host.available_kernels() == jpeg.available_kernels()
    assert host.available_kernels()[-1] == "generic"


@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
def test_an_unknown_instruction_set_is_refused(module):
    before = module.selected_kernels()
    names = ", ".join(module.available_kernels())
    said = rf"^select_kernels\('abacus'\): this processor has no such kernels: .* of {names}$"
    with pytest.raises(ValueError, match=said):
        module.select_kernels("abacus")
    assert module.selected_kernels() == before


def imported(module, kernels):
    """A process that imports a module under FASTSELFIE_KERNELS and prints its choice."""
    code = f"from fastselfie.kernels.{module} import select_kernels, selected_kernels;"
    code += "first = selected_kernels(); select_kernels('generic'); select_kernels('auto');"
    code += "print(first, selected_kernels())"
    environment = {**os.environ, "FASTSELFIE_KERNELS": kernels}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("kernels", jpeg.available_kernels())
def test_the_environment_chooses_the_instruction_set(module, kernels):
    assert imported(module, kernels).stdout.split() == [kernels, kernels]


def test_a_wrong_choice_by_the_environment_is_refused():
    lines = [imported(module, "abacus").stderr.splitlines()[-1] for module in MODULES]
    expected = "ValueError: FASTSELFIE_KERNELS=abacus: this processor has no such kernels: "
    expected += "set it to one of " + ", ".join(jpeg.available_kernels())
    assert lines == [expected, expected]


def host_results(dtype):
    """The bytes that the loops of kernels/host write, for sizes that no vector divides."""
    random = np.random.default_rng(0)

    def numbers(*shape):
        values = random.normal(size=shape).astype(np.float32)
        return (values.view(np.uint32) >> 16).astype(np.uint16) if dtype == np.uint16 else values

    images = random.integers(0, 256, (3, 22, 33, 3), dtype=np.uint8)
    order = random.integers(0, 6, (3, 5))
    scale, offset = random.normal(size=(2, 3)).astype(np.float32)
    flips, patches = np.array([True, False, True]), np.empty((3, 5, 11, 11, 3), dtype)
    host.patchify(images, flips, order, 11, 11, None, None, scale, offset, 2, patches)

    channels = 37
    x, gradient = numbers(531, channels), numbers(531, channels)
    weight, bias = random.normal(size=(2, channels)).astype(np.float32)
    found = np.empty((4, channels), np.float32)
    y, grad_x = np.empty_like(x), np.empty_like(x)
    grad_weight, grad_bias = np.empty_like(weight), np.empty_like(bias)
    host.norm_relu_forward(x, weight, bias, 1e-5, 2, found, y)
    host.norm_relu_backward(x, gradient, weight, found, 1e-5, 2, grad_x, grad_weight, grad_bias)
    written = (patches, found, y, grad_x, grad_weight, grad_bias)
    return [array.tobytes() for array in written]


@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
def test_every_set_gives_the_same_bits(dtype):
    """A fused product and sum, or another order of additions, would differ."""
    results = {}
    for kernels in host.available_kernels():
        host.select_kernels(kernels)
        results[kernels] = host_results(dtype)
    assert all(found == results["generic"] for found in results.values())


def test_the_command_line_reports_a_wrong_choice_in_one_line():
    environment = {**os.environ, "FASTSELFIE_KERNELS": "abacus"}
    command = [sys.executable, "-m", "fastselfie", "doctor"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: FASTSELFIE_KERNELS=abacus: this processor has no such")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
