"""Attention pooling against torch's own encoder, and what it must not depend on."""

from __future__ import annotations

import torch
from torch import nn

from fastselfie.models.attention_pooling import AttentionPooling, PostNormBlock


def test_a_block_equals_torchs_encoder_layer():
    ours = PostNormBlock(16, 4, 24, dropout=0.0).double()
    theirs = nn.TransformerEncoderLayer(16, 4, 24, 0.0, "gelu", batch_first=True).double()
    for mine, other in (
        (ours.qkv.weight, theirs.self_attn.in_proj_weight),
        (ours.qkv.bias, theirs.self_attn.in_proj_bias),
        (ours.out.weight, theirs.self_attn.out_proj.weight),
        (ours.out.bias, theirs.self_attn.out_proj.bias),
        (ours.norm1.weight, theirs.norm1.weight),
        (ours.fc1.weight, theirs.linear1.weight),
        (ours.fc1.bias, theirs.linear1.bias),
        (ours.fc2.weight, theirs.linear2.weight),
        (ours.fc2.bias, theirs.linear2.bias),
        (ours.norm2.bias, theirs.norm2.bias),
    ):
        nn.init.normal_(mine)
        other.data.copy_(mine.data)
    x = torch.randn(3, 5, 16, dtype=torch.float64)
    assert torch.allclose(ours(x), theirs(x), rtol=1e-10, atol=1e-12)


def test_the_order_of_the_visible_patches_does_not_matter():
    pooling = AttentionPooling(16, 3, 4, 24, dropout=0.1).double().eval()
    visible = torch.randn(2, 12, 16, dtype=torch.float64)
    shuffled = visible[:, torch.randperm(12)]
    assert torch.allclose(pooling(visible), pooling(shuffled), rtol=1e-10, atol=1e-12)


def test_u0_is_learned_and_not_zero():
    pooling = AttentionPooling(16, 1, 4, 24, dropout=0.0)
    pooling(torch.randn(2, 3, 16))[:, 0].sum().backward()
    assert pooling.u0.abs().max() > 0
    assert pooling.u0.grad.abs().max() > 0


def test_dropout_acts_in_training_only():
    pooling = AttentionPooling(16, 1, 4, 24, dropout=0.5)
    x = torch.randn(2, 3, 16)
    assert not torch.equal(pooling(x), pooling(x))
    pooling.eval()
    assert torch.equal(pooling(x), pooling(x))
