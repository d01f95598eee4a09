"""50,000 generated JPEGs give the pixels that they always gave, with every set of kernels.

tests/golden/jpeg_pixels.json has one hash per group of images.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY
from helpers.generated_jpegs import KINDS, generate
from helpers.jpegs import decode

from fastselfie.kernels import jpeg

GOLDEN = REPOSITORY / "tests" / "golden" / "jpeg_pixels.json"
GROUPS, IMAGES = 250, 200  # per group
PARTS = 5  # of the groups, a test each

pytestmark = pytest.mark.slow


@contextmanager
def kernels(name):
    jpeg.select_kernels(name)
    yield
    jpeg.select_kernels("auto")


def requests(seed, group):
    """Yield (boxes, flips, size of the output) for a whole group."""
    rng = np.random.RandomState(seed)
    n, whole = len(group.files), np.array([group.width, group.height])
    sides = rng.randint(1, whole + 1, (n, 2))
    yield np.tile([0, 0, *whole], (n, 1)), np.zeros(n), whole[::-1]
    crops = np.hstack([rng.randint(0, whole - sides + 1), sides])
    yield crops, rng.randint(0, 2, n), rng.randint(1, 60, 2)
    side = rng.randint(1, whole + 1)  # not resized
    places = rng.randint(0, whole - side + 1, (n, 2))
    yield np.hstack([places, np.tile(side, (n, 1))]), rng.randint(0, 2, n), side[::-1]
    reduced = -(-whole[::-1] // (2, 4, 8)[seed % 3])
    yield np.tile([0, 0, *whole], (n, 1)), rng.randint(0, 2, n), reduced


def digest(decoder, seed, group):
    """The hash of all pixels that are decoded of a group."""
    total = hashlib.sha256()
    for boxes, flips, size in requests(seed, group):
        out = np.zeros((len(group.files), *size, 3), np.uint8)
        ticket = decoder.submit(
            group.files, boxes.astype(np.int32), flips.astype(np.uint8), out=out
        )
        assert decoder.wait(ticket, help=True) == []
        total.update(out.tobytes())
    return total.hexdigest()[:16]


@pytest.mark.parametrize("part", range(PARTS))
def test_pixels_are_the_golden_ones(part):
    """Run this file as a program only if a change of the pixels is intended."""
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert (len(golden["hashes"]), golden["images"]) == (GROUPS, GROUPS * IMAGES)
    with jpeg.BatchDecoder(1) as decoder:
        for seed in range(part, GROUPS, PARTS):
            group = generate(seed, IMAGES)
            for name in jpeg.available_kernels():
                with kernels(name):
                    found = digest(decoder, seed, group)
                assert found == golden["hashes"][seed], (seed, group.kind, name)


@pytest.mark.parametrize("seed", range(2 * len(KINDS)))
def test_generated_files_are_valid(seed):
    """Pillow sees the same pictures, and so does libjpeg in the samples of every block."""
    group = generate(seed, 3)
    box = (0, 0, group.width, group.height)
    for data in group.files:
        samples = jpeg.planes(data, box), jpeg.planes(data, box, engine="libjpeg")
        assert all(map(np.array_equal, *samples))
        assert decode(data).size == (group.width, group.height)
        jpeg.check(data)


if __name__ == "__main__":  # with PYTHONPATH=tests
    with jpeg.BatchDecoder(1) as decoder:
        hashes = [digest(decoder, seed, generate(seed, IMAGES)) for seed in range(GROUPS)]
    about = f"hashes of the pixels of {IMAGES} generated JPEGs each; made by {Path(__file__).name}"
    result = {"about": about, "images": GROUPS * IMAGES, "hashes": hashes}
    GOLDEN.write_text(json.dumps(result, indent=0) + "\n")
