"""The host kernels against plain numpy, and the generator's reference against published vectors."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from fastselfie.kernels import reference
from fastselfie.kernels.host import (
    gather_crops,
    openmp_threads,
    run_parallel,
    set_openmp_threads,
    uniform,
)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # known answers of the authors' Random123 library
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_known_answers(counter, key, expected):
    words = reference.philox4x32(tuple(np.array([c], dtype=np.uint64) for c in counter), tuple(key))
    assert [int(w[0]) for w in words] == expected


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 40])
def test_uniform_equals_the_reference(count):
    random = np.random.default_rng(count)
    epochs, samples = random.integers(0, 2**32, (2, 300))
    for seed, purpose in ((0, 0), (2**32 - 1, 5)):
        expected = reference.uniform(seed, purpose, epochs, samples, count)
        assert np.array_equal(uniform(seed, purpose, epochs, samples, count), expected)


@pytest.mark.parametrize(
    ("epochs", "samples", "named"),
    [([0], [2**32], "samples"), ([-1], [0], "epochs"), ([0, 0], [0], "epochs")],
)
def test_uniform_refuses_what_is_no_counter(epochs, samples, named):
    with pytest.raises(ValueError, match=named):
        uniform(0, 0, np.array(epochs), np.array(samples), 4)


# 1 and 2 pixels: the mirrored copy has a first and a last pixel of its own.
@pytest.mark.parametrize(
    ("height", "width", "size"), [(40, 40, 32), (5, 9, 5), (2, 3, 2), (1, 1, 1)]
)
def test_crops_equal_indexing(height, width, size):
    random = np.random.default_rng(size)
    images = random.integers(0, 256, (7, height, width, 3), dtype=np.uint8)
    samples = random.integers(0, 7, 100)
    y, x = random.integers(0, height - size + 1, 100), random.integers(0, width - size + 1, 100)
    flips = random.random(100) < 0.5
    guarded = np.full((102, size, size, 3), 77, dtype=np.uint8)
    gather_crops(images, samples, np.stack([y, x], axis=1), flips, guarded[1:101])
    for row in range(100):
        crop = images[samples[row], y[row] : y[row] + size, x[row] : x[row] + size]
        assert np.array_equal(guarded[1 + row], crop[:, ::-1] if flips[row] else crop)
    assert (guarded[[0, 101]] == 77).all()


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"samples": [3]}, "samples holds 3"),
        ({"samples": [-1]}, "samples holds -1"),
        ({"offsets": [[3, 0]]}, "offsets, y, holds 3"),
        ({"offsets": [[0, -1]]}, "offsets, x, holds -1"),
        ({"offsets": [[0, 0], [0, 0]]}, "offsets"),
        ({"flips": [True, False]}, "flips"),
        ({"out": np.empty((1, 4, 5, 3), np.uint8)}, "out"),
        ({"out": np.empty((1, 4, 4, 3), np.float32)}, "out"),
        ({"out": np.empty((1, 8, 8, 3), np.uint8)[:, ::2, ::2]}, "out"),
        ({"out": np.empty((1, 9, 9, 3), np.uint8)}, "offsets"),
        ({"images": np.empty((3, 6, 6, 4), np.uint8)}, "images"),
    ],
)
def test_crops_outside_are_refused(changed, named):
    good = {
        "images": np.zeros((3, 6, 6, 3), np.uint8),
        "samples": [0],
        "offsets": [[0, 0]],
        "flips": [True],
        "out": np.empty((1, 4, 4, 3), np.uint8),
    }
    arguments = {name: np.asarray(value) for name, value in (good | changed).items()}
    with pytest.raises(ValueError, match=named):
        gather_crops(**arguments)


def test_a_set_that_would_be_copied_for_each_batch_is_refused():
    images = np.zeros((3, 6, 6, 3), np.uint8)[:, ::2]
    one = np.zeros(1, np.int64)
    with pytest.raises(TypeError):
        gather_crops(images, one, one.repeat(2)[None], one > 0, np.empty((1, 2, 2, 3), np.uint8))


def test_tasks_run_on_a_thread_each_and_at_the_same_time():
    together = threading.Barrier(4)  # where two shared a thread, the first would wait for ever
    threads = {}

    def task(number):
        together.wait(timeout=60)
        threads[number] = threading.get_ident()

    run_parallel(task, 4)
    assert sorted(threads) == [0, 1, 2, 3]
    assert len(set(threads.values())) == 4
    assert threads[0] == threading.get_ident()


def test_openmp_threads_set_by_a_task_end_with_it():
    before, inside = openmp_threads(), {}

    def task(number):
        set_openmp_threads(5 + number)
        inside[number] = openmp_threads()

    run_parallel(task, 2)
    assert inside == {0: 5, 1: 6}
    assert openmp_threads() == before


def test_an_exception_of_a_task_is_raised_when_all_are_done():
    done = []

    def task(number):
        if number == 1:
            raise KeyError("one")
        done.append(number)

    with pytest.raises(KeyError, match="one"):
        run_parallel(task, 3)
    assert sorted(done) == [0, 2]


def test_no_task_and_no_thread_are_refused():
    with pytest.raises(ValueError, match="count must be at least 1"):
        run_parallel(print, 0)
    with pytest.raises(ValueError, match="threads must be at least 1"):
        set_openmp_threads(0)


def test_the_extension_runs_on_the_openmp_library_of_torch():
    """Imported alone, without torch, which the system's library would be enough for."""
    code = (
        "import sys, fastselfie.kernels.host; assert 'torch' not in sys.modules;"
        "print(*{line.split()[-1] for line in open('/proc/self/maps') if 'libgomp' in line})"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == [
        str(path) for path in Path(torch.__file__).parent.glob("lib/libgomp*.so*")
    ]
