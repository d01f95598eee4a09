"""What the Triton programs cost, without a GPU: bytes moved, registers and shared memory."""

from __future__ import annotations

import json

import pytest
from conftest import REPOSITORY
from helpers.benchmarks import run_benchmark

pytestmark = pytest.mark.slow


def output_of(module, interpret):
    """The JSON that a module of benchmarks/support/ prints."""
    done = run_benchmark(
        "-m", f"support.{module}", cwd=REPOSITORY / "benchmarks", TRITON_INTERPRET=interpret
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def committed():
    path = REPOSITORY / "benchmarks" / "results" / "kernels.json"
    return json.loads(path.read_text(encoding="utf-8"))


def test_bytes_stay_near_the_least(committed):
    rows = output_of("traffic", "1")
    assert [row["shape"]["name"] for row in rows] == [
        "224: M 12, rows + columns", "32: M 4, learned", "224: M 12, pooled", "32: M 4, pooled",
    ]  # fmt: skip
    for row in rows:
        times, pooled = row["times_model"], row["shape"]["grid"] is None
        assert 1 <= times["distinct"] <= (1.01 if pooled else 1.15)
        assert times["launch"] + times["sums"] <= (1.51 if pooled else 1.8)
        # Plain torch moves many times as much, and a unit gradient costs no pass over the results.
        assert times["reference"] > (2 if pooled else 5)
        assert times["unit_scaling"] < 0.002
    assert rows == committed["traffic"]


def test_batch_norm_with_relu_makes_eight_passes(committed):
    """And one more forward for each of the two terms of a sum but the one it reads anyway."""
    rows = output_of("norm_traffic", "1")
    for row in rows:
        passes, summed = row["passes"], row["norm"]["summed"]
        assert passes["forward"] == (5 if summed else 3)
        assert passes["backward"] == (6 if summed else 5)
        assert passes["vectors"] < 0.95  # of one image: fewer for a batch
        # Torch's own, if each operation reads its inputs once, as batch norm does not.
        assert passes["reference"] == pytest.approx(16 if summed else 10, rel=0.02)
    assert rows == committed["norms"]


def test_it_compiles_for_every_target_without_spills(committed):
    rows = output_of("resources", "0")
    assert {row["target"] for row in rows} == {f"sm_{n}" for n in (80, 86, 89, 90, 100, 120)}
    assert {row["program"] for row in rows} == {
        "score", "query_score", "scaling", "patchify", "norm_relu", "max_pool", "pointwise",
    }  # fmt: skip
    found = {(row["program"], row["tile"].get("places"), row["tile"].get("rows")) for row in rows}
    assert {("score", 16, 16), ("score", 4, 16), ("score", 32, 32)} <= found
    assert {("query_score", places, None) for places in (4, 16, 32, 64)} <= found
    for row in rows:
        assert row["spilled_bytes"] == 0, row
        assert row["shared_bytes"] <= 99 * 1024  # what the smallest of today's GPUs have
    kinds = ("program", "shape", "target")
    named = [[row[kind] for kind in kinds] for row in rows]
    assert named == [[row[kind] for kind in kinds] for row in committed["resources"]]
