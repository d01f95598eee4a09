"""Each switch of the method: what it does to a run, and that a run with it goes from end to end."""

from __future__ import annotations

import json
import math

import pytest
import torch
from conftest import picture, tiny_config
from helpers.training import stopping_at

from fastselfie.data.dataset import open_dataset
from fastselfie.models.selfie import build_selfie
from fastselfie.system.accelerator import choose_accelerator
from fastselfie.training.finetune import few_labels, finetune
from fastselfie.training.metrics_log import read_log
from fastselfie.training.pretrain import pretrain

pytestmark = pytest.mark.slow

# (keys, whether pretraining is another one)
SWITCHES = {
    "query": (["model.query=pooled"], True),
    "logit_scale": (["model.logit_scale=none"], True),
    "cosine": (["model.query=pooled", "model.logit_scale=cosine"], True),
    "mask_fraction": (["model.mask_fraction=0.75"], True),
    "finer grid": (["model.patch_size=4", "model.mask_fraction=0.1"], True),
    "patch_gap": (["pretrain.patch_gap=2"], True),
    "patch_jitter": (["pretrain.patch_gap=2", "pretrain.patch_jitter=false"], True),
    "patch_grey": (["pretrain.patch_grey=0.5"], True),
    "patch_contrast": (["pretrain.patch_contrast=0.5"], True),
    "patch_brightness": (["pretrain.patch_brightness=0.3"], True),
    "data.pad_mode": (["data.pad_mode=zero"], True),
    "pretrain.pad_mode": (["pretrain.pad_mode=zero"], True),
    "pretrain.crop": (["pretrain.crop=resized", "pretrain.area=[0.5, 0.9]"], True),
    "form": (["finetune.form=attention_pooling"], False),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """DIR/{train,test}/{a,b}/*.png: 8 and 4 images a class, 32x32."""
    root = tmp_path_factory.mktemp("switches")
    for part, count in (("train", 8), ("test", 4)):
        for label in "ab":
            (root / part / label).mkdir(parents=True)
            for i in range(count):
                seed = 1000 * ord(label) + 100 * len(part) + i
                picture(seed).save(root / part / label / f"{i}.png")
    return root


def losses(out, key="loss"):
    return [line[key] for line in read_log(out / "log.jsonl") if key in line]


@pytest.fixture(scope="module")
def paper(folder, tmp_path_factory):
    """The losses of a run without any switch."""
    config = tiny_config(data={"train": str(folder)})
    out = tmp_path_factory.mktemp("paper")
    pretrain(config, open_dataset(config.data), out, choose_accelerator(config.runtime))
    return losses(out)


@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_changes_the_first_losses_and_runs_through(
    name, folder, paper, tmp_path, cli, tiny_yaml
):
    keys, pretraining = SWITCHES[name]
    out = tmp_path / "run"
    result = cli("train", tiny_yaml, f"data.train={folder}", *keys, "--out", out)
    assert result.status == 0, result.err
    found = losses(out / "pretrain")
    assert all(map(math.isfinite, found))
    assert (found[:2] != paper[:2]) == pretraining
    if name == "form":  # others leave the networks that `evaluate` builds as they are
        measured = json.loads(cli("evaluate", out).out.splitlines()[-1])
        figures = json.loads(result.out.splitlines()[-1])
        assert measured["finetuned"]["top1"] == pytest.approx(figures["finetuned_accuracy"])
        assert "knn" in measured["pretrain"]


def test_a_harder_task_goes_on_where_it_was(folder, tmp_path, accelerator):
    """In the middle of an epoch of 16, with masks and changes drawn for each sample."""
    config = tiny_config(
        data={"train": str(folder)},
        model={"mask_fraction": 0.75},
        pretrain={"steps": 6, "batch_size": 6, "patch_gap": 2, "patch_grey": 0.5,
                  "patch_contrast": 0.4, "patch_brightness": 0.2},
    )  # fmt: skip
    dataset = open_dataset(config.data)
    straight = pretrain(config, dataset, tmp_path / "straight", accelerator)[1]
    with stopping_at(5):
        pretrain(config, dataset, tmp_path / "left", accelerator)
    assert pretrain(config, dataset, tmp_path / "left", accelerator)[1] == straight
    assert losses(tmp_path / "left") == losses(tmp_path / "straight")


@pytest.mark.parametrize("started", [True, False])
def test_the_second_form_goes_on_where_it_was(folder, tmp_path, accelerator, started):
    """In the middle of an epoch of 8."""
    config = tiny_config(
        data={"train": str(folder)},
        finetune={"form": "attention_pooling", "steps": 6, "batch_size": 6, "save_every": 4},
    )  # fmt: skip
    few = few_labels(config, open_dataset(config.data))
    start = build_selfie(config) if started else None
    straight = finetune(config, few, tmp_path / "straight", accelerator, start)
    with stopping_at(5):
        finetune(config, few, tmp_path / "left", accelerator, start)
    assert finetune(config, few, tmp_path / "left", accelerator, start) == straight
    assert losses(tmp_path / "left") == losses(tmp_path / "straight")
    states = [torch.load(tmp_path / name / "latest.pt") for name in ("left", "straight")]
    for name, value in states[0]["model"].items():
        assert torch.equal(value, states[1]["model"][name]), name
