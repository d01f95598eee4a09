"""The tiles that `auto` chooses spill nothing with any swept Triton; see triton_sweep.py."""

from __future__ import annotations

import json
import re

import pytest
import triton_sweep
from conftest import REPOSITORY
from helpers.benchmarks import run_benchmark
from support import sweep
from support.resources import TARGETS

from fastselfie.kernels import distractor_score_triton, query_score_triton


@pytest.fixture(scope="module")
def committed():
    path = REPOSITORY / "benchmarks" / "results" / "triton-sweep.json"
    return json.loads(path.read_text(encoding="utf-8"))


def test_nothing_spills_and_shared_memory_suffices(committed):
    assert triton_sweep.failures(committed) == []


def test_the_oldest_and_the_pinned_triton_were_swept_and_a_newer_one(committed):
    pinned = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8")
    swept = list(committed["versions"])
    assert f"triton=={swept[0]}\n" in pinned
    oldest = re.search(r'"triton>=([^;]+);', (REPOSITORY / "pyproject.toml").read_text("utf-8"))
    assert f"{oldest[1]}.0" in swept
    assert max(map(_numbers, swept)) > _numbers(swept[0])


def _numbers(version):
    return tuple(map(int, version.split(".")))


def test_every_tile_of_today_was_swept(committed):
    """With another tile, or another shape that auto accepts, run the script again."""
    today = {f"{p.name}: {p.shape}": list(p.tile.values()) for p in sweep.accepted()}
    assert {name.split(":")[0] for name in today} == {
        "score", "query_score", "scaling", "patchify", "norm_relu", "max_pool", "pointwise",
    }  # fmt: skip
    pinned = next(iter(committed["versions"].values()))
    assert {name: row["tile"] for name, row in pinned.items()} == today
    with pytest.MonkeyPatch.context() as patch:
        for program in (distractor_score_triton, query_score_triton):
            patch.setattr(program, "BEFORE_3_7", True)
        older = {f"{p.name}: {p.shape}": list(p.tile.values()) for p in sweep.accepted()}
    assert {name: row["tile"] for name, row in committed["versions"]["3.3.0"].items()} == older
    for version, rows in committed["versions"].items():
        assert set(rows) == set(today)
        # There `auto` takes plain torch, see impl.lacks_products.
        lacking = {"sm_120"} if version == "3.3.0" else set()
        for row in rows.values():
            assert set(row["targets"]) == {f"sm_{target}" for target in TARGETS} - lacking


def test_a_spill_and_too_much_shared_memory_are_found():
    row = {"tile": [1], "targets": {"sm_80": [255, 8, 0], "sm_90": [1, 0, 102_000]}}
    row["targets"]["sm_120"] = [255, 0, 99 * 1024]
    lines = triton_sweep.failures({"versions": {"3.9.0": {"score: M 4": row}}})
    assert lines == [
        "Triton 3.9.0, score: M 4, sm_80: 8 bytes spilled, 0 of shared memory",
        "Triton 3.9.0, score: M 4, sm_90: 0 bytes spilled, 102000 of shared memory",
    ]


def test_a_folder_without_triton_is_named(tmp_path):
    out = tmp_path / "out.json"
    done = run_benchmark("benchmarks/triton_sweep.py", "--json", out, "--triton", tmp_path)
    assert done.returncode == 2
    assert done.stderr == f"error: --triton {tmp_path}: it holds no triton: pip install it with " \
                          "--target\n"  # fmt: skip
