"""What `runtime.compile: auto` does, and what stops it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import tiny_config

from fastselfie.errors import UserError
from fastselfie.system import accelerator as accelerators
from fastselfie.system import compilation, console
from fastselfie.training.finetune import build_finetuning, finetuning_stage
from fastselfie.training.pretrain import build_pretraining

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")


def chosen(device=GPU, **runtime):
    return compilation.choose_compile(tiny_config(runtime=runtime).runtime, device)


@pytest.fixture
def gpu(monkeypatch):
    """A machine whose GPU torch.compile can use."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(compilation.impl, "launch_fault", lambda: None)
    monkeypatch.setenv("CXX", "true")


def test_auto_is_the_default_and_compiles_on_a_gpu_only(gpu):
    assert tiny_config().runtime.compile == "auto"
    assert chosen() == ("default", None)
    assert chosen(cuda_graphs=True) == ("reduce-overhead", None)
    assert chosen(CPU) == (None, None)
    assert chosen(compile="off") == (None, None)
    assert chosen(CPU, compile="default") == ("default", None)
    assert chosen(compile="max-autotune") == ("max-autotune-no-cudagraphs", None)


def test_auto_gives_way_to_activation_checkpointing(gpu):
    mode, why = chosen(activation_checkpointing=True)
    assert mode is None
    assert why.startswith("runtime.activation_checkpointing")


@pytest.mark.parametrize(
    ("lacks", "said"),
    [
        ("compiler", r"the C\+\+ compiler no-such-compiler: install it"),
        ("triton", r"needs Triton: pip install"),
        ("capability", "needs a GPU of sm_70 or newer, not sm_61"),
        ("launcher", "Triton could not compile"),
    ],
)
def test_where_something_is_missing_auto_runs_eagerly_and_others_are_refused(
    gpu, monkeypatch, lacks, said
):
    if lacks == "compiler":
        monkeypatch.setenv("CXX", "no-such-compiler")
    elif lacks == "triton":
        monkeypatch.setattr(compilation.importlib.util, "find_spec", lambda name: None)
    elif lacks == "capability":
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    else:
        monkeypatch.setattr(compilation.impl, "launch_fault", lambda: "Triton could not compile")
    mode, why = chosen()
    assert mode is None
    with pytest.raises(UserError, match=rf"^runtime\.compile is default, but .*{said}"):
        chosen(compile="default")
    with pytest.raises(UserError, match=rf"^runtime\.cuda_graphs is true, but .*{said}"):
        chosen(cuda_graphs=True)
    assert "\n" not in why


def test_a_run_says_once_why_it_is_not_compiled(capsys):
    console.say_once.cache_clear()
    config = tiny_config()
    gpu = replace(accelerators.choose_accelerator(config.runtime), why_eager="no compiler")
    for _ in range(2):
        build_pretraining(config, gpu)
    said = capsys.readouterr().err
    assert said.count("runtime.compile is auto, and steps are not compiled: no compiler") == 1
    build_pretraining(config, replace(gpu, why_eager=None))
    assert not capsys.readouterr().err


def test_a_stage_with_progressive_sizes_is_not_compiled(monkeypatch, capsys):
    monkeypatch.setattr(torch, "compile", lambda model, mode: model)
    console.say_once.cache_clear()
    config = tiny_config(finetune={"progressive": [16]})
    gpu = replace(accelerators.choose_accelerator(config.runtime), compile="default")
    stage = finetuning_stage(config, "images", from_p=False)
    step = build_finetuning(config, stage, 2, gpu, None).step
    assert step.accelerator.compile is None
    assert "not compiled: each image size of finetune.progressive" in capsys.readouterr().err
    assert build_pretraining(config, gpu).step.accelerator.compile == "default"
    assert not capsys.readouterr().err
