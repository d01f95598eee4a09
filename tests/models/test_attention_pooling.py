"""Attention pooling against torch's own encoder, and what it must not depend on."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastselfie.models.attention_pooling import AttentionPooling, PostNormBlock


def torchs_layer(ours):
    """torch's encoder layer with the weights of a PostNormBlock."""
    d, inner = ours.out.in_features, ours.fc1.out_features
    theirs = nn.TransformerEncoderLayer(d, ours.heads, inner, 0.0, "gelu", batch_first=True)
    theirs.double()
    for mine, other in (
        (ours.qkv.weight, theirs.self_attn.in_proj_weight),
        (ours.qkv.bias, theirs.self_attn.in_proj_bias),
        (ours.out.weight, theirs.self_attn.out_proj.weight),
        (ours.out.bias, theirs.self_attn.out_proj.bias),
        (ours.norm1.weight, theirs.norm1.weight),
        (ours.norm1.bias, theirs.norm1.bias),
        (ours.fc1.weight, theirs.linear1.weight),
        (ours.fc1.bias, theirs.linear1.bias),
        (ours.fc2.weight, theirs.linear2.weight),
        (ours.fc2.bias, theirs.linear2.bias),
        (ours.norm2.weight, theirs.norm2.weight),
        (ours.norm2.bias, theirs.norm2.bias),
    ):
        nn.init.normal_(mine)
        other.data.copy_(mine.data)
    return theirs


def test_a_block_equals_torchs_encoder_layer():
    ours = PostNormBlock(16, 4, 24, dropout=0.0).double()
    theirs = torchs_layer(ours)
    x = torch.randn(3, 5, 16, dtype=torch.float64)
    assert torch.allclose(ours(x), theirs(x), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("layers", [1, 3])
def test_a_pooled_query_equals_a_transformer_for_each_location(layers):
    """The patches go through torch's layers alone, and each query goes beside them alone."""
    pooling = AttentionPooling(16, layers, 4, 24, dropout=0.1).double().eval()
    plain = [torchs_layer(block).eval() for block in pooling.blocks]
    visible, places = torch.randn(3, 5, 16).double(), torch.randn(3, 4, 16).double()
    expected = []
    for j in range(4):
        query, patches = pooling.u0 + places[:, j : j + 1], visible
        for layer in plain:
            query = layer(torch.cat([query, patches], dim=1))[:, :1]
            patches = layer(patches)
        expected.append(query)
    found = pooling(visible, places)
    assert torch.allclose(found, torch.cat(expected, dim=1), rtol=1e-10, atol=1e-12)
    assert torch.allclose(pooling(visible, places[:, 2:3]), found[:, 2:3], rtol=1e-10, atol=1e-12)


def test_no_patch_attends_to_a_pooled_query():
    """The outputs of the first block for the patches are those without any query."""
    pooling = AttentionPooling(16, 2, 4, 24, dropout=0.1).double().eval()
    visible, places = torch.randn(3, 5, 16).double(), torch.randn(3, 4, 16).double()
    seen = []
    pooling.blocks[0].register_forward_hook(lambda *args: seen.append(args[2]))
    pooling(visible, places)
    pooling(visible, places * 1000)
    alone = pooling.blocks[0](visible)
    for output in seen[:2]:
        assert torch.allclose(output[:, 4:], alone, rtol=1e-10, atol=1e-12)


def test_a_pooled_query_needs_no_visible_patch():
    """Without context each query is the transformer's output for itself alone."""
    pooling = AttentionPooling(16, 3, 4, 24, dropout=0.1).double().eval()
    places = torch.randn(3, 4, 16).double()
    query = (pooling.u0 + places).flatten(0, 1)[:, None]
    for block in pooling.blocks:
        query = block(query)
    expected = query.view(3, 4, 16)
    assert torch.allclose(pooling(places[:, :0], places), expected, rtol=1e-10, atol=1e-12)


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
