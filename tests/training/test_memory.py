"""The memory estimate against what autograd really keeps."""

from __future__ import annotations

import torch
from conftest import REPOSITORY, tiny_config

from fastselfie.config.load import load_config
from fastselfie.models.selfie import build_classifier, build_selfie
from fastselfie.system.accelerator import Precision
from fastselfie.training.memory import MemoryEstimate, estimate_finetuning, estimate_pretraining

FP32 = Precision("fp32", "test")


def kept_bytes(model, *inputs):
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        output = model(*inputs)
    del output
    return sum(t.untyped_storage().nbytes() for t in kept.values())


def test_the_estimate_is_what_a_forward_pass_keeps():
    config = tiny_config()
    model = build_selfie(config)
    order = torch.arange(16).expand(4, 16).contiguous()
    few, more = (kept_bytes(model, torch.randn(n, 16, 3, 8, 8), order[:n].clone()) for n in (2, 4))
    estimate = estimate_pretraining(config, FP32)
    assert estimate.parameters == sum(p.numel() for p in model.parameters())
    # A few buffers are kept on one side only (attention's statistics): a tenth covers them.
    assert abs(estimate.per_image - (more - few) / 2) < 0.1 * estimate.per_image


def test_a_gap_saves_the_memory_of_what_p_does_not_see():
    """Maps of 8, 4 and 2 pixels a side become maps of 4, 2 and 1."""
    whole = estimate_pretraining(tiny_config(), FP32)
    windows = estimate_pretraining(tiny_config(pretrain={"patch_gap": 4}), FP32)
    assert windows.parameters == whole.parameters
    assert windows.per_image < 0.5 * whole.per_image


def test_the_second_form_is_estimated_as_itself():
    config = tiny_config(finetune={"form": "attention_pooling"})
    model = build_classifier(config, 7)
    few, more = (kept_bytes(model, torch.randn(n, 3, 32, 32)) for n in (2, 4))
    estimate = estimate_finetuning(config, 7, FP32)
    assert estimate.parameters == sum(p.numel() for p in model.parameters())
    # As above: a few buffers are kept on one side only.
    assert abs(estimate.per_image - (more - few) / 2) < 0.1 * estimate.per_image


def test_kernels_that_run_on_a_gpu_alone_change_no_estimate(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    triton = tiny_config(runtime={"kernels": "triton"})
    assert estimate_pretraining(triton, FP32) == estimate_pretraining(tiny_config(), FP32)


def test_half_precision_halves_the_activations():
    config = load_config(REPOSITORY / "configs" / "cifar10.yaml")
    full = estimate_finetuning(config, 10, FP32).per_image
    half = estimate_finetuning(config, 10, Precision("bf16", "test")).per_image
    assert 0.45 < half / full < 0.65


def test_the_micro_batch_is_the_largest_divisor_that_fits():
    stage = tiny_config(pretrain={"batch_size": 96}).pretrain
    estimate = MemoryEstimate(parameters=0, fixed=1000, per_image=100)
    assert estimate.micro_batch(stage, 10**9) == 96
    assert estimate.micro_batch(stage, 5000) == 16  # 0.6 x 5000 = 3000 = 1000 + 20 images
    assert estimate.micro_batch(stage, 10) == 1
    asked = tiny_config(pretrain={"batch_size": 96, "micro_batch_size": 3}).pretrain
    assert estimate.micro_batch(asked, 10**9) == 3


def test_the_papers_batch_does_not_fit_a_laptop_at_once():
    config = load_config(REPOSITORY / "configs" / "in224.yaml")
    micro = estimate_pretraining(config, FP32).micro_batch(config.pretrain, 16 * 2**30)
    assert 1 < micro < 1024
