"""Statistics against printed tables of Student's t and numbers computed by hand."""

from __future__ import annotations

import json

import pytest
from conftest import tiny_config

from fastselfie.errors import UserError
from fastselfie.reproduce.protocol import make_protocol
from fastselfie.reproduce.scheduler import RESULT, RUNS, Scheduler
from fastselfie.reproduce.statistics import paired_difference, spread, student_t
from fastselfie.system.files import write_atomically


@pytest.mark.parametrize(
    ("freedom", "t"), [(1, 12.7062), (2, 4.30265), (3, 3.18245), (4, 2.77645), (9, 2.26216),
                       (10, 2.22814), (30, 2.04227), (1000, 1.96234)]
)  # fmt: skip
def test_students_t_is_that_of_the_tables(freedom, t):
    assert student_t(freedom) == pytest.approx(t, abs=6e-6)  # they give five digits after 0


def test_mean_and_spread_by_hand():
    """Deviations -1, 0, 1 of 0.01: variance 2e-4 / 2."""
    assert spread([0.75, 0.76, 0.77]) == {"mean": pytest.approx(0.76), "std": pytest.approx(0.01)}
    assert spread([0.75]) == {"mean": 0.75, "std": None}


def test_the_difference_is_paired():
    """Differences 1, 2, 3 points though each arm's own spread is far larger.

    Mean 2, std 1, so 2 +- 4.30265 / sqrt(3).
    """
    found = paired_difference([0.51, 0.72, 0.93], [0.50, 0.70, 0.90])
    assert found["mean"] == pytest.approx(0.02)
    assert found["low"] == pytest.approx(0.02 - 0.0430265 / 3**0.5, abs=1e-7)
    assert found["high"] == pytest.approx(0.02 + 0.0430265 / 3**0.5, abs=1e-7)
    assert paired_difference([0.5], [0.4])["low"] is None


def scheduler_of(tmp_path, grid, top1, splits=1):
    """A scheduler whose search at 50%, finetuned, found top1[lr][split]."""
    config = tiny_config(reproduce={"grid": grid, "splits": splits})
    protocol = make_protocol(config, "50", 1, 1.0)
    scheduler = Scheduler(protocol, tmp_path)
    for trial in protocol.search_trials(protocol.arms[0], protocol.grid):
        scheduler.finish(trial, {"top1": top1[trial.lr][trial.split]})
    return scheduler, protocol.arms[0]


@pytest.mark.parametrize(
    ("top1", "best", "at_edge"),
    [
        ({0.1: [0.5], 0.2: [0.7], 0.4: [0.6]}, 0.2, False),
        ({0.1: [0.5], 0.2: [0.6], 0.4: [0.6]}, 0.2, False),  # ties go to the lower
        ({0.1: [0.5], 0.2: [0.6], 0.4: [0.7]}, 0.4, True),
        ({0.1: [0.0], 0.2: [None], 0.4: [None]}, 0.1, True),
    ],
)
def test_the_best_rate(tmp_path, top1, best, at_edge):
    scheduler, arm = scheduler_of(tmp_path, [0.4, 0.1, 0.2], top1)
    choice = scheduler.search(arm).choice()
    assert (choice.lr, choice.at_edge) == (best, at_edge)


def test_a_rate_is_the_mean_of_its_splits_and_one_that_diverged_is_out(tmp_path):
    top1 = {0.1: [0.6, 0.6], 0.2: [0.9, 0.4], 0.4: [1.0, None]}
    scheduler, arm = scheduler_of(tmp_path, [0.1, 0.2, 0.4], top1, splits=2)
    assert scheduler.search(arm).choice().scores == {0.1: 0.6, 0.2: pytest.approx(0.65), 0.4: None}
    assert scheduler.search(arm).choice().lr == 0.2


def test_rounding_breaks_no_tie(tmp_path):
    top1 = {0.1: [0.48, 0.46], 0.2: [0.40, 0.54]}
    assert sum(top1[0.2]) / 2 > sum(top1[0.1]) / 2  # as floats, in numbers they are equal
    scheduler, arm = scheduler_of(tmp_path, [0.1, 0.2], top1, splits=2)
    assert scheduler.search(arm).choice().lr == 0.1


@pytest.mark.parametrize(
    ("top1", "rates", "best", "at_edge"),
    [
        # Best at the upper end: 0.4 ** 2 / 0.2 = 0.8, which is worse, so that is all.
        ({0.1: 0.5, 0.2: 0.6, 0.4: 0.7, 0.8: 0.6}, [0.1, 0.2, 0.4, 0.8], 0.4, False),
        # Better still at both further ones: 1.6 is the last that widen allows.
        ({0.1: 0.5, 0.2: 0.6, 0.4: 0.7, 0.8: 0.8, 1.6: 0.9}, [0.1, 0.2, 0.4, 0.8, 1.6], 1.6, True),
        ({0.05: 0.6, 0.1: 0.7, 0.2: 0.6, 0.4: 0.5}, [0.05, 0.1, 0.2, 0.4], 0.1, False),
        ({0.1: 0.5, 0.2: 0.6, 0.4: 0.5}, [0.1, 0.2, 0.4], 0.2, False),
        # All diverged: lower ones.
        ({0.025: 0.2, 0.05: 0.3, 0.1: None, 0.2: None, 0.4: None},
         [0.025, 0.05, 0.1, 0.2, 0.4], 0.05, False),
    ],
)  # fmt: skip
def test_a_search_goes_on_beyond_an_end_that_is_the_best(tmp_path, top1, rates, best, at_edge):
    config = tiny_config(reproduce={"grid": [0.1, 0.2, 0.4], "widen": 2})
    scheduler = Scheduler(make_protocol(config, "50", 1, 1.0), tmp_path)
    arm = scheduler.protocol.arms[0]
    tried = []
    while (trial := scheduler.next()) is not None and trial.arm == arm and trial.split is not None:
        assert scheduler.search(arm).choice() is None
        tried.append(trial.lr)
        scheduler.finish(trial, {"top1": top1[trial.lr]})
    choice = scheduler.search(arm).choice()
    assert sorted(tried) == rates == list(choice.scores)
    assert (choice.lr, choice.at_edge) == (best, at_edge)
    assert trial == scheduler.protocol.seed_runs(arm, best)[0]
    assert scheduler.total == len(rates) + 1 + 3 + 1  # and the other arm's


def test_where_every_rate_diverges_the_search_ends(tmp_path):
    config = tiny_config(reproduce={"grid": [0.1, 0.2], "widen": 1}, finetune={"control": False})
    scheduler = Scheduler(make_protocol(config, "50", 1, 1.0), tmp_path)
    for lr in (0.1, 0.2, 0.05):
        trial = scheduler.next()
        assert trial.lr == lr
        scheduler.finish(trial, {"top1": None})
    with pytest.raises(UserError, match=r"every rate tried, from 0.05 on"):
        scheduler.next()


def test_one_rate_is_never_widened(tmp_path):
    config = tiny_config(reproduce={"grid": [0.1], "widen": 3})
    scheduler = Scheduler(make_protocol(config, "50", 1, 1.0), tmp_path)
    assert scheduler.next().split is None


def test_a_seed_run_of_another_rate_is_not_taken(tmp_path):
    """Its folder has no rate in its name."""
    config = tiny_config(reproduce={"grid": [0.1]}, finetune={"control": False})
    protocol = make_protocol(config, "50", 1, 1.0)
    (trial,) = protocol.seed_runs(protocol.arms[0], 0.1)
    path = tmp_path / RUNS / trial.name / RESULT
    for lr, left in ((0.2, 1), (0.1, 0)):
        write_atomically(path, json.dumps({"lr": lr, "top1": 0.5}))
        assert Scheduler(protocol, tmp_path).left == left
    path.write_bytes(path.read_bytes()[:9])  # damaged: none
    assert Scheduler(protocol, tmp_path).left == 1
