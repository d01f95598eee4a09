"""The names of stages, and both spellings of the one that finetunes."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from fastselfie.config import Config
from fastselfie.stage_names import FINETUNED, PRETRAIN, SUPERVISED, StageName, stages_to_run


@pytest.mark.parametrize("stage", StageName)
def test_a_name_is_its_text_wherever_it_is_written(stage):
    assert f"{stage}" == str(stage) == stage.value == json.loads(json.dumps(stage))
    assert Path("run") / stage == Path("run") / stage.value
    assert {stage.value: 1}[stage] == 1
    assert pickle.loads(pickle.dumps(stage)) is stage


def test_each_stage_has_a_section_of_the_config():
    config = Config(name="any")
    assert [stage.section for stage in StageName] == ["pretrain", "finetune", "finetune"]
    for stage in StageName:
        assert config.stage_settings(stage) is getattr(config, stage.section)


def test_finetuning_has_two_spellings():
    assert StageName("finetune") is StageName("finetuned") is FINETUNED
    assert stages_to_run("finetune") == stages_to_run("finetuned") == (FINETUNED,)
    assert stages_to_run("pretrain") == (PRETRAIN,)
    assert stages_to_run("all") == (PRETRAIN, FINETUNED)


@pytest.mark.parametrize("choice", ["supervised", "", "Pretrain", "evaluate"])
def test_train_runs_no_other_stage(choice):
    with pytest.raises(ValueError, match=f"stage is '{choice}': it must be pretrain, finetuned or"):
        stages_to_run(choice)


def test_an_unknown_stage_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match="stage is 'all': it must be pretrain, finetuned, superv"):
        StageName("all")
    assert SUPERVISED == "supervised"
