"""Each switch of the method: what it does to a run, and that a run with it goes from end to end."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from conftest import picture, tiny_config
from helpers.training import stopping_at
from PIL import Image

from fastselfie.data.dataset import open_dataset
from fastselfie.data.inputs import InputTransform
from fastselfie.data.loaders import Batch, Index
from fastselfie.errors import UserError
from fastselfie.models.selfie import build_selfie
from fastselfie.system.accelerator import choose_accelerator
from fastselfie.training.finetune import few_labels, finetune
from fastselfie.training.metrics_log import read_log
from fastselfie.training.nonfinite import Guard
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
    "progressive": (["finetune.progressive=[16, 24]"], False),
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
def test_a_switch_runs_through_and_those_of_pretraining_change_its_first_losses(
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
    """With all the rest of finetuning's switches, in the middle of an epoch of 8."""
    config = tiny_config(
        data={"train": str(folder)},
        finetune={"form": "attention_pooling", "steps": 6, "batch_size": 6, "save_every": 4,
                  "progressive": [16, 24], "progressive_until": 0.8},
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


def test_images_grow_in_equal_parts_of_the_steps():
    stage = tiny_config(
        finetune={"steps": 10, "progressive": [16, 24], "progressive_until": 0.5}
    ).finetune
    sizes = [stage.image_size_at(step) for step in range(10)]
    assert sizes == [16, 16, 16, 24, 24, None, None, None, None, None]
    assert tiny_config().finetune.image_size_at(0) is None


def test_images_are_shrunk_as_pillow_shrinks_them():
    images = torch.stack([torch.from_numpy(np.array(picture(i, 96, 96))) for i in range(65)])
    rest = torch.arange(65), (torch.zeros(65, dtype=torch.bool),)
    batch = Batch((images,), *rest, Index(np.arange(65), np.zeros(65, dtype=np.int64)))
    assert batch.shrunk(None) is batch
    found = batch.shrunk(66)
    assert found.images.shape == (65, 66, 66, 3)
    assert found.labels is batch.labels
    assert found.flip is batch.flip
    for i in (0, 64):
        expected = Image.fromarray(images[i].numpy()).resize((66, 66), Image.Resampling.BILINEAR)
        apart = np.abs(np.asarray(expected, dtype=int) - found.images[i].numpy())
        assert apart.max() <= 1  # Pillow rounds twice, after each direction


@pytest.mark.parametrize("loader", ["resident", "folder"])
def test_small_images_are_the_same_samples(folder, tmp_path, accelerator, monkeypatch, loader):
    """And what is measured is of the whole size."""
    seen, measured, whole_images = [], [], InputTransform.whole

    def remember(self, batch, dtype=None):
        images = whole_images(self, batch, dtype)
        kept = seen if torch.is_grad_enabled() else measured
        kept.append((batch.index.samples.tolist(), batch.flip, images.shape[-1]))
        return images

    monkeypatch.setattr(InputTransform, "whole", remember)
    for name, sizes in (("small", [16, 24]), ("whole", [])):
        config = tiny_config(
            data={"train": str(folder), "loader": loader},
            finetune={"steps": 4, "progressive": sizes},
        )
        few = few_labels(config, open_dataset(config.data))
        finetune(config, few, tmp_path / name, accelerator, None)
    small, whole = seen[:4], seen[4:]
    assert [side for *_, side in small] == [16, 24, 32, 32]
    assert {side for *_, side in whole} | {side for *_, side in measured} == {32}
    for (samples, flip, _), other in zip(small, whole, strict=True):
        assert samples == other[0]
        assert torch.equal(flip, other[1])


def test_a_shrunk_step_is_replayed_shrunk(folder, tmp_path, accelerator, monkeypatch, cli):
    config = tiny_config(
        data={"train": str(folder)}, finetune={"steps": 4, "progressive": [16], "log_every": 1}
    )
    few = few_labels(config, open_dataset(config.data))
    finetune(config, few, tmp_path / "straight", accelerator, None)
    judge = Guard.judge
    with monkeypatch.context() as patch:
        patch.setattr(Guard, "judge", lambda self, step, loss, norm: judge(
            self, step, loss * math.nan if step == 1 else loss, norm))  # fmt: skip
        with pytest.raises(UserError, match="nan at step 2"):
            finetune(config, few, tmp_path / "run", accelerator, None)
    result = cli("replay", tmp_path / "run" / "nonfinite-0000002.pt")
    found = json.loads(result.out.splitlines()[-1])
    assert found["losses"] == [losses(tmp_path / "straight")[1]]


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"finetune": {"progressive": [12]}}, r"is \[12\]: must increase, in multiples of 8"),
        ({"finetune": {"progressive": [32]}}, r"below data\.image_size = 32"),
        ({"finetune": {"progressive": [24, 16]}}, "must increase"),
        ({"finetune": {"progressive": [20]}}, r"finetune\.progressive.*of 8, from at least 8"),
        ({"finetune": {"progressive": [8], "form": "attention_pooling"}}, "of 4, from at least 16"),
        ({"finetune": {"progressive": [16]}, "runtime": {"compile": "default"}},
         r"runtime\.compile=off"),
        ({"finetune": {"progressive": [16]}, "runtime": {"cuda_graphs": True}},
         r"finetune\.progressive .* take only one size: set runtime\.cuda_graphs=false"),
    ],
)  # fmt: skip
def test_sizes_that_a_network_cannot_take_are_refused(sections, said):
    with pytest.raises(ValueError, match=said):
        tiny_config(**sections)
