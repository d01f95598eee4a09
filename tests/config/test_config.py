"""Config: what is accepted, what is refused, and in which words."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from conftest import REPOSITORY

from fastselfie.config import Config, differing_keys
from fastselfie.config.load import load_config, recorded_config
from fastselfie.errors import UserError

CONFIGS = sorted((REPOSITORY / "configs").glob("*.yaml"))


def load(tmp_path, text, *overrides):
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config(path, overrides)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_shipped_configs_load_and_open_with_time_metric_command(path):
    config = load_config(path)
    assert config.name == path.stem
    comment = [x for x in path.read_text(encoding="utf-8").splitlines() if x.startswith("#")]
    assert all(any(word in line for line in comment) for word in ("time", "metric", "command"))


@pytest.mark.parametrize(
    ("name", "patches", "masked", "batch", "scheme"),
    [("cifar10", 16, 4, 512, "learned"), ("in32", 16, 4, 1024, "learned"),
     ("in224", 49, 12, 1024, "row_column")],
)  # fmt: skip
def test_paper_settings(name, patches, masked, batch, scheme):
    config = load_config(REPOSITORY / "configs" / f"{name}.yaml")
    assert (config.patches, config.masked, config.model.positions) == (patches, masked, scheme)
    assert config.model.width == 64
    assert config.model.blocks == (3, 4, 6, 3)
    for stage in (config.pretrain, config.finetune):
        assert (stage.batch_size, stage.steps, stage.warmup_steps) == (batch, 120_000, 100)
        assert (stage.momentum, stage.weight_decay) == (0.9, 1e-4)
        assert 0.01 <= stage.lr <= 0.4


def test_overrides_and_yaml_round_trip(tmp_path):
    config = load(tmp_path, "name: a", "pretrain.lr=1e-2", "model.blocks=[1,1,1,1]", "seed=7")
    assert (config.pretrain.lr, config.model.blocks, config.seed) == (0.01, (1, 1, 1, 1), 7)
    assert load(tmp_path, config.to_yaml()) == config


def test_paths_are_taken_as_they_are_written(tmp_path):
    for text in ("/x/set #1", "2012", "/x/a: b", "~/x"):
        assert load(tmp_path, "name: a", f"data.train={text}").data.train == text
    assert load(tmp_path, "name: a\ndata: {train: x}", "data.train=null").data.train is None
    assert load(tmp_path, "name: a\npretrain:", "pretrain.steps=3").pretrain.steps == 3


@pytest.mark.parametrize(
    ("text", "overrides", "words"),
    [
        ("name: a\nmodel: {widht: 3}", (), ["model.widht", "c.yaml", "'model.width'"]),
        ("name: a", ("pretrain.step=3",), ["pretrain.step", "command line", "'pretrain.steps'"]),
        ("name: a", ("batch_size=3",), ["batch_size", "'pretrain.batch_size'"]),
        ("name: a", ("pretrain.steps=many",), ["pretrain.steps", '"many"', "integer"]),
        ("name: a\npretrain: {lr: '0.1'}", (), ["pretrain.lr", "c.yaml", "number"]),
        ("name: a", ("pretrain.steps=0",), ["pretrain.steps", "greater than or equal to 1"]),
        ("name: a", ("name.first=x",), ["name", "not a section"]),
        ("name: a", ("seed",), ["KEY=VALUE"]),
        ("name: a", ("seed=[1",), ["seed", "YAML"]),
        ("name: a\nname: b", (), ["c.yaml", "duplicate key 'name'"]),
        ("name: ../a", (), ["name", "pattern"]),
        ("seed: 1", (), ["missing key 'name'"]),
        ("- 1", (), ["c.yaml", "mapping"]),
        ("name: a\ndata: {image_size: 30}", (), ["data.image_size", "model.patch_size"]),
        ("name: a\npretrain: {area: [0.5, 0.2]}", (), ["pretrain.area is [0.5, 0.2]"]),
        (
            "name: a\ndata: {crop: pad, loader: resident}\npretrain: {crop: resized}",
            (),
            ["resident", "pretrain.crop: pad"],
        ),
        ("name: a\nmodel: {patch_size: 8}", (), ["model.patch_size is 8", "imagenet", "16"]),
        (
            "name: a\ndata: {image_size: 32}",
            (),
            ["at least 2", "decrease model.patch_size"],
        ),
        ("name: a", ("model.logit_scale=cosine",), ["logit_scale is cosine", "query=pooled"]),
        ("name: a", ("model.mask_fraction=0.02",), ["masks 0 of 49", "at least 2", "increase"]),
        ("name: a", ("model.mask_fraction=0.04",), ["masks 1 of 49", "at least 2"]),
        ("name: a", ("model.mask_fraction=1.0",), ["model.mask_fraction", "less than 1"]),
        ("name: a", ("pretrain.patch_gap=32",), ["pretrain.patch_gap is 32", "leaves 0 pixels"]),
        ("name: a", ("pretrain.patch_gap=40",), ["pretrain.patch_gap is 40", "leaves 0 pixels"]),
        ("name: a", ("pretrain.patch_gap=17",), ["leaves 15 pixels", "at least 16", "imagenet"]),
        ("name: a", ("pretrain.patch_gap=-1",), ["pretrain.patch_gap", "greater than"]),
        ("name: a", ("pretrain.patch_grey=1.5",), ["pretrain.patch_grey", "less than"]),
        ("name: a", ("pretrain.patch_contrast=1.0",), ["pretrain.patch_contrast", "less than 1"]),
        ("name: a", ("data.loader=resident",), ["data.loader is resident", "data.crop: pad"]),
        ("name: a", ("model.heads=7",), ["model.heads", "divide"]),
        ("name: a", ("pretrain.micro_batch_size=3",), ["micro_batch_size", "divide"]),
        ("name: a", ("pretrain.lr=.inf",), ["pretrain.lr"]),
        ("name: a\nx: !!python/object/apply:os.system [ls]", (), ["c.yaml", "YAML"]),
    ],
)
def test_a_mistake_is_one_line_that_names_it(tmp_path, text, overrides, words):
    with pytest.raises(UserError) as caught:
        load(tmp_path, text, *overrides)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("section", "key", "off", "effective"),
    [
        ("finetune", "recalibrate", 0, 9),
        ("model", "encoder_positions", True, False),
        ("model", "end_norm", True, False),
        ("pretrain", "ema", None, 0.9),
        ("pretrain", "progressive", [], [24]),
    ],
)
def test_a_removed_key_is_accepted_where_it_was_off(tmp_path, section, key, off, effective):
    """As in the config that an older version wrote."""
    written = f"name: a\n{section}: {{{key}: {json.dumps(off)}}}"
    assert load(tmp_path, written) == load(tmp_path, "name: a")
    with pytest.raises(UserError, match=rf"^{section}\.{key} \(command line\) was removed[^\n]*$"):
        load(tmp_path, "name: a", f"{section}.{key}={json.dumps(effective)}")
    with pytest.raises(UserError, match=rf"c\.yaml: {section}\.{key} was removed[^\n]*$"):
        load(tmp_path, f"name: a\n{section}: {{{key}: {json.dumps(effective)}}}")
    # A file for `fastselfie replay` holds a config too.
    config = load(tmp_path, "name: a")
    recorded = config.model_dump(mode="json")
    recorded[section][key] = off
    assert recorded_config(json.dumps(recorded), Path("a.pt")) == config
    assert differing_keys(recorded, dump(config), [section]) == []
    recorded[section][key] = effective
    with pytest.raises(UserError, match=rf"^a\.pt: was made with {section}\.{key}=[^\n]*$"):
        recorded_config(json.dumps(recorded), Path("a.pt"))
    # A run that had an effect of it is not resumed.
    differing = differing_keys(recorded, dump(config), [section])
    assert differing == [f"{section}.{key} ({json.dumps(effective)} -> removed)"]
    differing = differing_keys(dump(config), recorded, [section])
    assert differing == [f"{section}.{key} (removed -> {json.dumps(effective)})"]
    assert differing_keys(recorded, recorded, [section]) == []


def test_a_removed_key_that_depends_on_another_is_accepted(tmp_path):
    """Without `progressive`, which is refused, `progressive_until` had no effect."""
    written = "name: a\npretrain: {progressive: [], progressive_until: 0.8}"
    assert load(tmp_path, written) == load(tmp_path, "name: a")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nothing\.yaml: no such file"):
        load_config(tmp_path / "nothing.yaml")


def dump(config: Config):
    return config.model_dump(mode="json")


def test_only_keys_that_matter_differ(tiny):
    changed = tiny(data={"workers": 3, "flip": False}, pretrain={"lr": 0.3, "log_every": 9})
    keys = differing_keys(dump(tiny()), dump(changed), ("data", "pretrain"))
    assert [key.split()[0] for key in keys] == ["data.flip", "pretrain.lr"]
    assert differing_keys(dump(tiny()), dump(changed), ("model",)) == []


def test_a_key_that_an_older_run_lacks_had_todays_default(tiny):
    zero = dump(tiny(data={"pad_mode": "zero"}))
    reflect = dump(tiny(data={"pad_mode": "reflect"}))
    older = dump(tiny())
    del older["data"]["pad_mode"], older["checkpoint"], older["finetune"]["control"]
    assert differing_keys(older, zero, list(older)) == []
    assert "data.pad_mode" in differing_keys(older, reflect, list(older))[0]


@pytest.mark.parametrize("size", [64, 224, 320])
def test_the_largest_fraction_leaves_a_patch_visible(size):
    """Its product with N is never rounded up to N: for powers of two and for other N."""
    data, model = {"image_size": size}, {"mask_fraction": math.nextafter(1, 0), "patch_size": 32}
    config = Config(name="a", data=data, model=model)
    assert config.masked == config.patches - 1
