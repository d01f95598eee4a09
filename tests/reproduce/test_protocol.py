"""Which runs there are, and which images each may see."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import tiny_config

from fastselfie.data.dataset import open_dataset
from fastselfie.data.splits import validation_split
from fastselfie.errors import UserError
from fastselfie.reproduce.protocol import Group, make_plan


@pytest.fixture
def plan(idx_folder):
    """40 training images of 4 classes: 20% are 2 a class."""
    config = tiny_config(
        data={"train": str(idx_folder)},
        finetune={"lr": 9.0, "scratch_lr": 8.0, "labels_per_class": 3},
        reproduce={"grid": [0.2, 0.05, 0.2], "splits": 2},
    )
    return make_plan(config, "20, 50,20", 3, None)


def test_both_arms_have_the_same_runs_at_each_share(plan):
    assert plan.groups == [(20.0, "finetuned"), (20.0, "supervised"), (50.0, "finetuned"),
                           (50.0, "supervised")]  # fmt: skip
    names = {}
    for group in plan.groups:
        runs = [*plan.grid_searches(group), *plan.finals(group, 0.05)]
        names[group] = [run.name.replace(group.arm, "ARM") for run in runs]
    assert names[plan.groups[2]] == [
        "labels-50/ARM/lr-0.05-split-0", "labels-50/ARM/lr-0.05-split-1",
        "labels-50/ARM/lr-0.2-split-0", "labels-50/ARM/lr-0.2-split-1",
        "labels-50/ARM/seed-0", "labels-50/ARM/seed-1", "labels-50/ARM/seed-2",
    ]  # fmt: skip
    assert names[plan.groups[2]] == names[plan.groups[3]]


def test_a_run_has_its_rate_share_and_seed_and_nothing_else_of_its_own(plan):
    group = Group(50.0, "supervised")
    config = plan.config_for(plan.finals(group, 0.05)[2])
    assert (config.seed, config.finetune.lr, config.finetune.scratch_lr) == (2, 0.05, None)
    assert (config.finetune.labels, config.finetune.labels_per_class) == (0.5, None)
    search = plan.config_for(plan.grid_searches(group)[0])
    assert (search.seed, search.finetune.steps) == (0, 2)
    assert search.model_copy(update={"seed": 2, "finetune": config.finetune}) == config


def test_no_search_sees_a_test_image_and_splits_divide_the_labelled_ones(plan, idx_folder):
    dataset = open_dataset(plan.config.data)
    test_pixels = {image.tobytes() for image in dataset.held_out.images}
    for group in plan.groups:
        labelled = dataset.train.select(plan.labelled(dataset, group.labels))
        known = {image.tobytes() for image in labelled.images}
        assert len(known) == 40 * group.labels / 100
        for run in plan.grid_searches(group):
            few = plan.images_for(run, dataset)
            trained, measured = ({i.tobytes() for i in s.images} for s in few[:2])
            assert trained | measured == known
            assert not trained & measured
            assert not (trained | measured) & test_pixels
            for part in few[:2]:  # class-balanced
                assert len(set(np.bincount(part.labels, minlength=4))) == 1
        final = plan.images_for(plan.finals(group, 0.05)[0], dataset)
        assert {i.tobytes() for i in final.train.images} == known
        assert {i.tobytes() for i in final.held_out.images} == test_pixels


def test_seeds_and_arms_share_the_images_and_splits_have_their_own(plan):
    dataset = open_dataset(plan.config.data)
    prints = {}
    for arm in ("finetuned", "supervised"):
        group = Group(50.0, arm)
        runs = [*plan.grid_searches(group), *plan.finals(group, 0.2)]
        prints[arm] = [plan.images_for(run, dataset).images for run in runs]
    assert prints["finetuned"] == prints["supervised"]
    first, second, *_ = prints["finetuned"]
    # Two splits, each at both rates; three seeds on all.
    assert prints["finetuned"] == [first, second, first, second, *3 * prints["finetuned"][-1:]]
    assert len(set(prints["finetuned"])) == 3


def test_ten_splits_validate_on_every_image_once():
    labels = np.repeat(np.arange(3), 20)
    parts = [validation_split(labels, 5, number) for number in range(10)]
    for trained, validated in parts:
        assert np.bincount(labels[validated]).tolist() == [2, 2, 2]
        assert np.array_equal(np.sort(np.r_[trained, validated]), np.arange(60))
    assert np.array_equal(np.sort(np.concatenate([p[1] for p in parts])), np.arange(60))
    other = validation_split(labels, 6, 0)[1]
    assert not np.array_equal(other, parts[0][1])


def test_a_class_of_two_gives_one_to_each_part():
    trained, validated = validation_split(np.array([0, 1, 0, 1]), 0, 3)
    assert (len(trained), len(validated)) == (2, 2)
    with pytest.raises(UserError, match="class 1 has one labelled image"):
        validation_split(np.array([0, 1, 0]), 0, 0)


def test_the_budget_shortens_both_stages_alike():
    config = tiny_config(pretrain={"steps": 400, "warmup_steps": 100},
                         finetune={"steps": 80, "warmup_steps": 10})  # fmt: skip
    short = make_plan(config, "100", 1, 0.1).config
    assert (short.pretrain.steps, short.pretrain.warmup_steps) == (40, 10)
    assert (short.finetune.steps, short.finetune.warmup_steps) == (8, 1)
    assert make_plan(config, "100", 1, None).config == config


def test_one_rate_needs_no_search_and_no_control_no_second_arm():
    config = tiny_config(reproduce={"grid": [0.1]}, finetune={"control": False})
    plan = make_plan(config, "5", 2, None)
    assert plan.groups == [(5.0, "finetuned")]
    assert plan.grid_searches(plan.groups[0]) == []
