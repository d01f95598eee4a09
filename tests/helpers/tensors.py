"""Tensors in the layouts that the kernels take."""

from __future__ import annotations

import torch


def channels_last(tensor):
    return tensor.contiguous(memory_format=torch.channels_last)
