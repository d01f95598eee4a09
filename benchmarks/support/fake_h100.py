"""An H100 that is not there: steps run on fake tensors, and torch.compile takes it for a GPU.

Needs the library of tests/helpers/fake_cuda, loaded before torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch._inductor.config  # else a patch of a name in it would import it too late
from helpers.fake_cuda.device import fake_gpu
from torch import Tensor
from torch._inductor.fx_passes.joint_graph import UniformValueConstantFolder
from torch.utils._python_dispatch import TorchDispatchMode

# Of the SXM card, as CUDA reports it.
_H100 = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3", major=9, minor=0, total_memory=80 * 2**30,
    multi_processor_count=132, warp_size=32, regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048, max_threads_per_block=1024,
    shared_memory_per_block=48 * 2**10, shared_memory_per_block_optin=227 * 2**10,
    shared_memory_per_multiprocessor=228 * 2**10, L2_cache_size=50 * 2**20,
)  # fmt: skip
_REPLACED: dict[str, Callable[..., Any]] = {
    "torch.accelerator.is_available": lambda: False,  # Dynamo would ask for the current stream
    "torch.cuda._lazy_init": lambda: None,
    "torch.cuda.current_device": lambda: 0,
    "torch.cuda._exchange_device": lambda _: 0,
    "torch.cuda._maybe_exchange_device": lambda _: 0,
    "torch.cuda._get_device_properties": lambda *_: _H100,
    "torch.cuda.get_device_properties": lambda *_: _H100,
}


class _OnHost(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Makes real tensors on the CPU, where inductor folds constants."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if "device" in kwargs:
            kwargs["device"] = torch.device("cpu")
        return func(*args, **kwargs)


_deduce_value = UniformValueConstantFolder._deduce_value


def _fold_on_host(folder: UniformValueConstantFolder, node: Any) -> Any:
    with _OnHost():  # type: ignore[no-untyped-call]
        return _deduce_value(folder, node)


def _flash_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """Do as `scaled_dot_product_attention` on an H100; a CPU build knows no fused kernels."""
    assert mask is None, "flash attention takes no mask"
    out: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, dropout)[0]
    return out


@contextmanager
def fake_h100() -> Iterator[None]:
    """Inside, `cuda` is an H100 without values, for eager steps and for inductor."""
    with ExitStack() as stack:
        waits = stack.enter_context(fake_gpu())
        for name, value in _REPLACED.items():
            create = name == "torch.cuda._get_device_properties"  # a CPU build lacks it
            stack.enter_context(mock.patch(name, value, create=create))
        stack.enter_context(mock.patch("torch.version.cuda", "13.0"))
        stack.enter_context(
            mock.patch("torch.nn.functional.scaled_dot_product_attention", _flash_attention)
        )
        stack.enter_context(
            mock.patch.object(UniformValueConstantFolder, "_deduce_value", _fold_on_host)
        )
        # Padding of products is chosen by measuring. D and its kin are multiples of 8 anyway.
        settings = {"shape_padding": False, "fx_graph_cache": False, "compile_threads": 1}
        stack.enter_context(torch._inductor.config.patch(settings))
        waits.__exit__(None, None, None)  # Dynamo compiles nothing under such a mode
        try:
            yield
        finally:
            waits.__enter__()
