"""Which trials there are, and which images each may see."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import tiny_config

from fastselfie.data.dataset import open_dataset
from fastselfie.data.splits import validation_split
from fastselfie.errors import UserError
from fastselfie.reproduce.protocol import Arm, make_protocol


@pytest.fixture
def protocol(idx_folder):
    """40 training images of 4 classes: 20% are 2 a class."""
    config = tiny_config(
        data={"train": str(idx_folder)},
        finetune={"lr": 9.0, "scratch_lr": 8.0, "labels_per_class": 3},
        reproduce={"grid": [0.2, 0.05, 0.2], "splits": 2},
    )
    return make_protocol(config, "20, 50,20", 3, 1.0)


def test_both_arms_have_the_same_runs_at_each_share(protocol):
    assert protocol.arms == [(20.0, "finetuned"), (20.0, "supervised"), (50.0, "finetuned"),
                           (50.0, "supervised")]  # fmt: skip
    names = {}
    for arm in protocol.arms:
        trials = [*protocol.search_trials(arm, protocol.grid), *protocol.seed_runs(arm, 0.05)]
        names[arm] = [trial.name.replace(arm.start, "ARM") for trial in trials]
    assert names[protocol.arms[2]] == [
        "labels-50/ARM/lr-0.05-split-0", "labels-50/ARM/lr-0.05-split-1",
        "labels-50/ARM/lr-0.2-split-0", "labels-50/ARM/lr-0.2-split-1",
        "labels-50/ARM/seed-0", "labels-50/ARM/seed-1", "labels-50/ARM/seed-2",
    ]  # fmt: skip
    assert names[protocol.arms[2]] == names[protocol.arms[3]]


def test_a_run_has_its_rate_share_and_seed_and_nothing_else_of_its_own(protocol):
    arm = Arm(50.0, "supervised")
    config = protocol.config_for(protocol.seed_runs(arm, 0.05)[2])
    assert (config.seed, config.finetune.lr, config.finetune.scratch_lr) == (2, 0.05, None)
    assert (config.finetune.labels, config.finetune.labels_per_class) == (0.5, None)
    search = protocol.config_for(protocol.search_trials(arm, protocol.grid)[0])
    assert (search.seed, search.finetune.steps) == (0, 2)
    assert search.model_copy(update={"seed": 2, "finetune": config.finetune}) == config


def test_no_search_sees_a_test_image_and_splits_divide_the_labelled_ones(protocol, idx_folder):
    dataset = open_dataset(protocol.config.data)
    test_pixels = {image.tobytes() for image in dataset.held_out.images}
    for arm in protocol.arms:
        labelled = dataset.train.select(protocol.labelled(dataset, arm.labels))
        known = {image.tobytes() for image in labelled.images}
        assert len(known) == 40 * arm.labels / 100
        for trial in protocol.search_trials(arm, protocol.grid):
            few = protocol.images_for(trial, dataset)
            trained, measured = ({i.tobytes() for i in s.images} for s in few[:2])
            assert trained | measured == known
            assert not trained & measured
            assert not (trained | measured) & test_pixels
            for part in few[:2]:  # class-balanced
                assert len(set(np.bincount(part.labels, minlength=4))) == 1
        seed_run = protocol.images_for(protocol.seed_runs(arm, 0.05)[0], dataset)
        assert {i.tobytes() for i in seed_run.train.images} == known
        assert {i.tobytes() for i in seed_run.held_out.images} == test_pixels


def test_seeds_and_arms_share_the_images_and_splits_have_their_own(protocol):
    dataset = open_dataset(protocol.config.data)
    prints = {}
    for start in ("finetuned", "supervised"):
        arm = Arm(50.0, start)
        trials = [*protocol.search_trials(arm, protocol.grid), *protocol.seed_runs(arm, 0.2)]
        prints[start] = [protocol.images_for(trial, dataset).images for trial in trials]
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
    short = make_protocol(config, "100", 1, 0.1).config
    assert (short.pretrain.steps, short.pretrain.warmup_steps) == (40, 10)
    assert (short.finetune.steps, short.finetune.warmup_steps) == (8, 1)
    assert make_protocol(config, "100", 1, 1.0).config == config


def test_one_rate_needs_no_search_and_no_control_no_second_arm():
    config = tiny_config(reproduce={"grid": [0.1]}, finetune={"control": False})
    protocol = make_protocol(config, "5", 2, 1.0)
    assert protocol.arms == [(5.0, "finetuned")]
    assert protocol.search_trials(protocol.arms[0], protocol.grid) == []
