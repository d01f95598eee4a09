"""ResNet v2 (pre-activation), after He et al., "Identity mappings in deep residual networks".

Parameter names are those of timm's `resnetv2_50`, so weights can be exchanged with it. The first
three stages without a classifier are the patch network P. All four with one are finetuned.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Literal, NamedTuple

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fastselfie.kernels.convolution import convolution
from fastselfie.kernels.impl import Impl
from fastselfie.kernels.max_pool import max_pool
from fastselfie.kernels.norm_relu import add_norm_relu
from fastselfie.kernels.pointwise import fuses_pointwise, pointwise_norm_relu

Stem = Literal["imagenet", "cifar"]


class ExecutionOptions(NamedTuple):
    """Options that change a network's speed and memory, but not its result.

    Attributes:
        checkpointed: keep only the blocks' inputs for the backward pass.
        kernels: see `norm_relu`, `fuses_pointwise`, `convolution` and `max_pool`.
    """

    checkpointed: bool = False
    kernels: Impl = "auto"


class Terms(NamedTuple):
    """A map of features as the sum of two terms, which the next norm adds in its own pass.

    Attributes:
        x: (B, C, H, W).
        shortcut: (B, C, H, W), or None: the map is the first term.
        weight: (C, K, 1, 1), of a convolution of `x` (B, K, H, W), which the next norm also
            computes; or None: the first term is `x`.
    """

    x: Tensor
    shortcut: Tensor | None = None
    weight: Tensor | None = None

    def added(self) -> Tensor:
        """Return the sum. It overwrites the result of a convolution, which does not keep it."""
        x = self.x if self.weight is None else convolution(self.x, self.weight)
        return x if self.shortcut is None else x.add_(self.shortcut)

    def normalised(self, norm: nn.BatchNorm2d, kernels: Impl) -> tuple[Tensor, Tensor]:
        """Return the sum, and relu(norm(sum)): see `add_norm_relu`."""
        if self.weight is None:
            return add_norm_relu(norm, self.x, self.shortcut, kernels)
        return pointwise_norm_relu(norm, self.x, self.weight, self.shortcut, kernels)


_EXPANSION = 4  # a bottleneck's output width divided by its inner width


class _Convolution(nn.Conv2d):
    """A convolution without bias, as a norm follows. With stride 1 it keeps the size."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, kernels: Impl) -> None:
        super().__init__(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
        self.kernels = kernels

    def forward(self, x: Tensor) -> Tensor:
        return convolution(x, self.weight, self.stride[0], int(self.padding[0]), self.kernels)


class _Pointwise(_Convolution):
    """A 1x1 convolution in front of a norm, which computes it if that is faster."""

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Terms:  # type: ignore[override]
        """(B, C, H, W) -> the map that has the convolution of x and `shortcut` as terms."""
        if self.training and fuses_pointwise(x, self.weight, shortcut, self.kernels):
            return Terms(x, shortcut, self.weight)
        return Terms(super().forward(x), shortcut)


class _MaxPool(nn.MaxPool2d):
    """A max pool 3x3/2. A fused kernel runs only in training, as for norms."""

    def __init__(self, kernels: Impl) -> None:
        super().__init__(3, 2, 1)
        self.kernels = kernels

    def forward(self, x: Tensor) -> Tensor:
        return max_pool(x, self.kernels if self.training else "reference")


def _stem(kind: Stem, width: int, kernels: Impl) -> nn.Sequential:
    """imagenet: 7x7/2 and max pool 3x3/2. cifar: 3x3/1. No norm: the first block starts with one.

    P's output of a 32x32 patch (imagenet) and of an 8x8 patch (cifar) is 2x2.
    """
    if kind == "cifar":
        return _named(conv=_Convolution(3, width, 3, 1, kernels))
    return _named(conv=_Convolution(3, width, 7, 2, kernels), pool=_MaxPool(kernels))


def _named(**modules: nn.Module) -> nn.Sequential:
    """Return the modules in sequence, under timm's parameter names."""
    return nn.Sequential(OrderedDict(modules))


class Bottleneck(nn.Module):
    """norm, ReLU, 1x1; norm, ReLU, 3x3; norm, ReLU, 1x1; plus the input.

    Where the shape changes, the shortcut takes the normalised and activated input.

    Args:
        inputs: channels.
        outputs: channels, four times the inner width.
        stride: of the 3x3 convolution and the shortcut.
        kernels: see `ExecutionOptions`.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, kernels: Impl) -> None:
        super().__init__()
        self.kernels = kernels
        inner = outputs // _EXPANSION
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = _Pointwise(inputs, inner, 1, 1, kernels)
        self.norm2 = nn.BatchNorm2d(inner)
        self.conv2 = _Convolution(inner, inner, 3, stride, kernels)
        self.norm3 = nn.BatchNorm2d(inner)
        self.conv3 = _Pointwise(inner, outputs, 1, 1, kernels)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = _named(conv=_Convolution(inputs, outputs, 1, stride, kernels))

    def forward(self, terms: Terms) -> Terms:
        """(B, inputs, H, W) -> (B, outputs, H / stride, W / stride)."""
        x, y = terms.normalised(self.norm1, self.kernels)
        shortcut = x if self.downsample is None else self.downsample(y)
        y = self.conv1(y).normalised(self.norm2, self.kernels)[1]
        y = Terms(self.conv2(y)).normalised(self.norm3, self.kernels)[1]
        out: Terms = self.conv3(y, shortcut)
        return out


@contextmanager
def _frozen_statistics(block: nn.Module) -> Iterator[None]:
    """Let batch norm normalise by its batch without updating its running statistics."""
    norms = [m for m in block.modules() if isinstance(m, (nn.BatchNorm2d, nn.SyncBatchNorm))]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def _recomputed(block: nn.Module, x: Tensor) -> Tensor:
    """Compute block(x), keeping only x for the backward pass (Chen et al., 2016)."""
    first = True

    def run(x: Tensor) -> Tensor:
        nonlocal first
        statistics = nullcontext() if first else _frozen_statistics(block)
        first = False
        with statistics:
            out: Tensor = block(Terms(x)).added()
        return out

    # Reentrant: the memory estimate's hooks then see the saved input. P has no dropout.
    out: Tensor = checkpoint(run, x, use_reentrant=True, preserve_rng_state=False)
    return out


class _Stage(nn.Module):
    def __init__(
        self, count: int, inputs: int, outputs: int, stride: int, options: ExecutionOptions
    ) -> None:
        super().__init__()
        self.checkpointed = options.checkpointed
        blocks = [Bottleneck(inputs, outputs, stride, options.kernels)]
        blocks += [Bottleneck(outputs, outputs, 1, options.kernels) for _ in range(count - 1)]
        self.blocks = nn.Sequential(*blocks)

    def forward(self, terms: Terms) -> Terms:
        if self.checkpointed and self.training and terms.x.requires_grad:
            x = terms.added()
            for block in self.blocks:
                x = _recomputed(block, x)
            return Terms(x)
        out: Terms = self.blocks(terms)
        return out


class Head(nn.Module):
    """The last layer of a classifier, a 1x1 convolution as in timm.

    Args:
        width: D, of the features.
        classes: outputs.
    """

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.fc = nn.Conv2d(width, classes, 1)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)  # type: ignore[arg-type]

    def forward(self, pooled: Tensor) -> Tensor:
        """(B, D) -> (B, classes)."""
        logits: Tensor = self.fc(pooled[:, :, None, None])
        return logits.flatten(1)


class ResNetV2(nn.Module):
    """A pre-activation ResNet of bottlenecks. A norm and a ReLU precede the average pooling.

    The paper does not say whether P, cut from the network after three stages, has them. Without
    them it was no better: see docs/results.md.

    Args:
        blocks: bottlenecks in each stage: 3 entries for P, 4 for the classifier.
        width: channels of the stem.
        stem: imagenet or cifar.
        classes: outputs; None: the pooled features.
        options: see `ExecutionOptions`.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        width: int = 64,
        stem: Stem = "imagenet",
        classes: int | None = None,
        options: ExecutionOptions = ExecutionOptions(),  # noqa: B008
    ) -> None:
        super().__init__()
        self.kernels = options.kernels
        self.stem = _stem(stem, width, options.kernels)
        stages, inputs = [], width
        for index, count in enumerate(blocks):
            outputs = width * _EXPANSION * 2**index
            stages.append(_Stage(count, inputs, outputs, 1 if index == 0 else 2, options))
            inputs = outputs
        self.stages = nn.Sequential(*stages)
        self.norm = nn.BatchNorm2d(inputs)
        self.width = inputs
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.head = None if classes is None else Head(inputs, classes)

    def features(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, D): the input of the classifier."""
        terms: Terms = self.stages(Terms(self.stem(x)))
        return terms.normalised(self.norm, self.kernels)[1].mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, classes), or (B, D) without classes."""
        pooled = self.features(x)
        return pooled if self.head is None else self.head(pooled)

    def start_from(self, patch_network: ResNetV2) -> None:
        """Copy P into the stem and the first stages; the rest keeps its initial values.

        P's last norm, with its batch statistics, is copied into the first norm of the next stage,
        which has the same place in the network.
        """
        self.stem.load_state_dict(patch_network.stem.state_dict())
        depth = len(patch_network.stages)
        self.stages[:depth].load_state_dict(patch_network.stages.state_dict())
        following = self.stages.get_submodule(f"{depth}.blocks.0.norm1")
        following.load_state_dict(patch_network.norm.state_dict())
