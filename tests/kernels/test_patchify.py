"""The ways to cut patches against the reference: C++, and the Triton program, interpreted."""

from __future__ import annotations

import pytest
import torch

from fastselfie.kernels import reference
from fastselfie.kernels.patchify import patchify


def task(height, width, patch, images=5):
    random = torch.Generator().manual_seed(patch)
    pixels = torch.randint(0, 256, (images, height, width, 3), dtype=torch.uint8, generator=random)
    flip = torch.rand(images, generator=random) < 0.5
    places = height // patch * (width // patch)
    order = torch.randint(0, places, (images, 2 * places), generator=random)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return pixels, flip, order, patch, mean, std


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("height", "width", "patch"), [(32, 32, 8), (12, 20, 4), (3, 2, 1), (6, 6, 6)]
)
def test_on_a_cpu_it_equals_the_reference(dtype, height, width, patch):
    arguments = task(height, width, patch)
    expected = reference.patchify(*arguments, dtype)
    found = patchify(*arguments, dtype)
    assert found.dtype == dtype
    assert found.stride() == expected.stride()
    assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("height", "width", "patch"), [(16, 16, 8), (4, 10, 2), (40, 40, 20)])
def test_the_triton_program_rounds_once_more_at_most(dtype, height, width, patch):
    """A GPU may fuse its product and sum. 40 x 40: a patch of more than one block."""
    arguments = task(height, width, patch, images=3)
    expected = reference.patchify(*arguments, torch.float64)
    found = patchify(*arguments, dtype, impl="triton")
    assert found.stride() == reference.patchify(*arguments, dtype).stride()
    # Values are below 4: a rounding to dtype, and three in float32 before.
    allowed = 2 * torch.finfo(dtype).eps + 6 * torch.finfo(torch.float32).eps
    assert float((found.double() - expected).abs().max()) <= allowed


@pytest.mark.parametrize("impl", ["auto", "triton", "reference"])
def test_patches_that_do_not_fit_are_refused(impl):
    pixels, flip, order, _, mean, std = task(8, 8, 4)
    with pytest.raises(ValueError, match="patch is 3"):
        patchify(pixels, flip, order, 3, mean, std, impl=impl)


def test_a_place_outside_of_the_grid_is_refused_or_nan():
    pixels, flip, order, patch, mean, std = task(8, 8, 4)
    order[1, 2] = 4
    with pytest.raises(ValueError, match="order holds 4"):
        patchify(pixels, flip, order, patch, mean, std)
    found = patchify(pixels, flip, order, patch, mean, std, impl="triton")
    assert found[1, 2].isnan().all()
    assert int(found.isnan().sum()) == found[1, 2].numel()


def test_triton_where_it_does_not_run_is_said(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ValueError, match="impl is triton, but the tensors are on cpu"):
        patchify(*task(8, 8, 4), impl="triton")
