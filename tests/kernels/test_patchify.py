"""The ways to cut patches against the reference: C++, and the Triton program, interpreted."""

from __future__ import annotations

import pytest
import torch

from fastselfie.kernels import host, patchify_triton, reference
from fastselfie.kernels.patch_changes import UNCHANGED, PatchChanges
from fastselfie.kernels.patchify import patchify


def task(height, width, patch, images=5):
    random = torch.Generator().manual_seed(patch)
    pixels = torch.randint(0, 256, (images, height, width, 3), dtype=torch.uint8, generator=random)
    flip = torch.rand(images, generator=random) < 0.5
    places = height // patch * (width // patch)
    order = torch.randint(0, places, (images, 2 * places), generator=random)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return pixels, flip, order, patch, mean, std


def drawn(pixels, patch, window=None, names=("corners", "grey", "tone")):
    """Changes of the patches of `task`: random ones of those in `names`, none of the others.

    Their memory is not in the order of their dimensions.
    """
    random = torch.Generator().manual_seed(patch)
    b, height, width, _ = pixels.shape
    places, gap = height // patch * (width // patch), patch - (window or patch)
    found = {
        "corners": torch.randint(0, gap + 1, (2, places, b), generator=random).permute(2, 1, 0),
        "grey": (torch.rand(places, b, generator=random) < 0.5).T,
        "tone": torch.rand(2, places, b, generator=random).permute(2, 1, 0)
        + torch.tensor([0.5, -0.5]),
    }
    return PatchChanges(window, **{name: found[name] for name in names})


CHANGES = [(), ("corners",), ("grey",), ("tone",), ("corners", "grey", "tone")]


def spy(monkeypatch):
    """The shapes of the images that the C++ is given from now on."""
    cut, given = host.patchify, []
    monkeypatch.setattr(host, "patchify", lambda images, *a: given.append(images.shape)
                        or cut(images, *a))  # fmt: skip
    return given


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("height", "width", "patch"), [(32, 32, 8), (12, 20, 4), (3, 2, 1), (6, 6, 6)]
)
def test_on_a_cpu_it_equals_the_reference(monkeypatch, dtype, height, width, patch):
    arguments = task(height, width, patch)
    expected = reference.patchify(*arguments, dtype)
    used = spy(monkeypatch)
    found = patchify(*arguments, dtype)
    assert used == [(5, height, width, 3)]
    assert found.dtype == dtype
    assert found.stride() == expected.stride()
    assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("names", CHANGES)
@pytest.mark.parametrize("window", [None, 5, 1])
def test_on_a_cpu_changed_patches_equal_the_reference(monkeypatch, dtype, names, window):
    arguments = task(16, 24, 8)
    changes = drawn(arguments[0], 8, window, names)
    expected = reference.patchify(*arguments, dtype, changes)
    used = spy(monkeypatch)
    found = patchify(*arguments, dtype, changes=changes)
    assert len(used) == 1
    assert found.shape[3:] == (window or 8, window or 8)
    assert found.stride() == expected.stride()
    assert torch.equal(found, expected)


@pytest.mark.parametrize("impl", ["auto", "triton", "reference"])
def test_changes_that_change_nothing_give_the_same_bits(impl):
    arguments = task(16, 24, 8)
    b, places = len(arguments[0]), 6
    changes = PatchChanges(
        8,
        torch.zeros(b, places, 2, dtype=torch.int64),
        torch.zeros(b, places, dtype=torch.bool),
        torch.tensor([1.0, 0.0]).expand(b, places, 2),
    )
    expected = patchify(*arguments, impl=impl)
    assert torch.equal(patchify(*arguments, impl=impl, changes=changes), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("names", CHANGES)
@pytest.mark.parametrize(("patch", "window"), [(8, None), (8, 5), (20, 19)])
def test_the_triton_program_changes_patches_as_the_reference(dtype, names, patch, window):
    """A window of 19 x 19 is more than one block."""
    arguments = task(2 * patch, 2 * patch, patch, images=2)
    changes = drawn(arguments[0], patch, window, names)
    expected = reference.patchify(*arguments, torch.float64, changes)
    found = patchify(*arguments, dtype, impl="triton", changes=changes)
    assert found.stride() == reference.patchify(*arguments, dtype, changes).stride()
    # Values are below 8: a rounding to dtype. In float32 before, four roundings of products below
    # 6.7, and of the offset and the sum those of numbers below 0.8 / std, 1.3 / std, 5.5 and 6.2.
    allowed = 4 * torch.finfo(dtype).eps + 24 * torch.finfo(torch.float32).eps
    assert float((found.double() - expected).abs().max()) <= allowed


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("impl", ["auto", "triton", "reference"])
@pytest.mark.parametrize("place", [-1, 4, 2**40])
def test_a_place_outside_of_the_grid_is_refused(place, impl, dtype):
    pixels, flip, order, patch, mean, std = task(8, 8, 4)
    order[1, 2] = place
    with pytest.raises(ValueError, match=f"^order holds {place}: N is 4$"):
        patchify(pixels, flip, order, patch, mean, std, dtype, impl)


@pytest.mark.parametrize("place", [-1, 4, 2**40])
def test_on_a_device_a_place_outside_of_the_grid_makes_nan(place):
    """Below the check of CPU tensors, where tensors of a GPU come in."""
    pixels, flip, order, patch, mean, std = task(8, 8, 4)
    order[1, 2] = place
    factors = reference.scale_and_offset(mean, std, torch.float32)
    given = (pixels, flip, order, patch, *factors, torch.float32, UNCHANGED)
    found = patchify_triton.patchify(*given)
    assert found[1, 2].isnan().all()
    assert int(found.isnan().sum()) == found[1, 2].numel()


@pytest.mark.parametrize("corner", [-1, 3, 2**40])
@pytest.mark.parametrize("axis", [0, 1])
def test_on_a_device_a_window_outside_of_its_cell_makes_nan(corner, axis):
    pixels, flip, _, patch, mean, std = task(8, 8, 4)
    order = torch.arange(4).repeat(5, 1)
    changes = drawn(pixels, patch, 2)
    changes.corners[1, 2, axis] = corner
    factors = reference.scale_and_offset(mean, std, torch.float32, changes.tone)
    given = (pixels, flip, order, patch, *factors, torch.float32, changes)
    found = patchify_triton.patchify(*given)
    assert found[1, 2].isnan().all()
    assert int(found.isnan().sum()) == found[1, 2].numel()


@pytest.mark.parametrize("impl", ["auto", "triton", "reference"])
@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"window": 0}, r"^window is 0: it must be in \[1, 4\]"),
        ({"window": 5}, r"^window is 5: it must be in \[1, 4\]"),
        ({"corners": torch.zeros(5, 3, 2, dtype=torch.int64)}, r"^corners is .* of \(5, 4, 2\)"),
        ({"corners": torch.zeros(5, 4, 2)}, r"^corners is torch\.float32"),
        ({"corners": torch.full((5, 4, 2), 3)}, "^corners holds 3: .* cell of 4"),
        ({"corners": torch.full((5, 4, 2), -1)}, "^corners holds -1"),
        ({"grey": torch.zeros(5, 4)}, r"^grey is torch\.float32 .* torch\.bool of \(5, 4\)"),
        ({"grey": torch.zeros(4, 4, dtype=torch.bool)}, "^grey is"),
        ({"tone": torch.zeros(5, 4, 2, dtype=torch.int64)}, "^tone is torch.int64 .* floats of"),
        ({"tone": torch.zeros(5, 4)}, "^tone is"),
        ({"tone": torch.zeros(5, 4, 2, device="meta")}, "^tone is on meta, images on cpu"),
    ],
)
def test_bad_changes_are_named(changed, said, impl):
    arguments = task(8, 8, 4)
    changes = drawn(arguments[0], 4, 2)._replace(**changed)
    with pytest.raises(ValueError, match=said):
        patchify(*arguments, impl=impl, changes=changes)


def test_colour_is_dropped_from_three_channels_only():
    pixels, flip, order, patch, mean, std = task(8, 8, 4)
    two = (pixels[..., :2].contiguous(), flip, order, patch, mean[:2], std[:2])
    changes = drawn(pixels, patch, 2)
    with pytest.raises(ValueError, match=r"^grey needs three channels, and images has 2"):
        patchify(*two, changes=changes)
    uncoloured = changes._replace(grey=None)
    found = patchify(*two, changes=uncoloured)
    assert torch.equal(found, patchify(*task(8, 8, 4), changes=uncoloured)[:, :, :2])


IMAGES, FLIP, ORDER, PATCH, MEAN, STD = task(8, 8, 4)


@pytest.mark.parametrize("impl", ["auto", "triton", "reference"])
@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"images": IMAGES[0]}, r"^images is torch.uint8 of shape \(8, 8, 3\)"),
        ({"images": IMAGES.float()}, "^images is torch.float32"),
        ({"flip": FLIP[:4]}, r"^flip is torch.bool of shape \(4,\): .* = \(5,\)"),
        ({"flip": FLIP[:, None]}, "^flip is"),
        ({"flip": FLIP.long()}, "^flip is torch.int64"),
        ({"order": ORDER[:4]}, r"^order is torch.int64 of shape \(4, 8\)"),
        ({"order": ORDER[0]}, "^order is"),
        ({"order": ORDER.float()}, "^order is torch.float32"),
        ({"order": ORDER.int()}, "^order is torch.int32"),
        ({"patch": 0}, "^patch is 0"),
        ({"mean": MEAN[:1]}, r"^mean is torch.float32 of shape \(1,\): .* = \(3,\)"),
        ({"std": STD.long()}, "^std is torch.int64"),
        ({"order": ORDER.to("meta")}, "^order is on meta, images on cpu"),
        ({"mean": MEAN.to("meta")}, "^mean is on meta, images on cpu"),
    ],
)
def test_bad_input_names_its_argument(changed, said, impl):
    given = {"images": IMAGES, "flip": FLIP, "order": ORDER, "patch": PATCH, "mean": MEAN,
             "std": STD, **changed}  # fmt: skip
    with pytest.raises(ValueError, match=said):
        patchify(**given, impl=impl)


def test_triton_makes_no_float64():
    """Auto leaves it to the reference."""
    arguments = task(8, 8, 4)
    with pytest.raises(ValueError, match=r"^dtype is torch\.float64"):
        patchify(*arguments, torch.float64, "triton")
    expected = reference.patchify(*arguments, torch.float64)
    assert torch.equal(patchify(*arguments, torch.float64), expected)


def test_an_unknown_impl_is_named():
    with pytest.raises(ValueError, match=r"^impl is 'fast': one of auto, reference, triton"):
        patchify(*task(8, 8, 4), impl="fast")


def test_triton_where_it_does_not_run_is_said(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ValueError, match="impl is triton, but the tensors are on cpu"):
        patchify(*task(8, 8, 4), impl="triton")
