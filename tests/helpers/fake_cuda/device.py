"""Makes torch believe that there is one GPU, whose tensors are fake."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes

from fastselfie.kernels import patchify_triton
from helpers.fake_cuda.waits import HostWaits, Stream, Waits

_PROPERTIES = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3", major=9, minor=0, total_memory=80 * 2**30,
    multi_processor_count=132, warp_size=32,
)  # fmt: skip
_LIBRARY = torch.library.Library("aten", "IMPL", "Meta")


def _fused_sgd_(params: Any, gradients: Any, momenta: Any, **settings: Any) -> None:
    """Check what the CUDA kernel checks, and what it takes for granted."""
    flags = [
        settings[name] for name in ("grad_scale", "found_inf") if settings.get(name) is not None
    ]

    def layout(tensor: Tensor) -> list[int]:  # torch compares it so, too
        pairs = zip(tensor.shape, tensor.stride(), strict=True)
        return [stride for size, stride in pairs if size != 1]

    devices = {t.device for t in (*params, *gradients, *momenta, *flags)}
    assert len(devices) == 1, f"_fused_sgd_ mixes devices: {devices}"
    for number, (parameter, gradient) in enumerate(zip(params, gradients, strict=True)):
        others = [gradient, *([momenta[number]] if momenta else [])]
        assert all(layout(t) == layout(parameter) for t in others), (
            f"_fused_sgd_ mixes layouts of {tuple(parameter.shape)}: "
            f"{[t.stride() for t in (parameter, *others)]}"
        )


def _update_scale_(scale: Tensor, growth: Tensor, found_inf: Tensor, *_: Any) -> Tensor:
    assert scale.device == growth.device == found_inf.device
    return scale


_LIBRARY.impl("_fused_sgd_", _fused_sgd_)
_LIBRARY.impl("_amp_update_scale_", _update_scale_)


class _Program:
    """A Triton program that computes nothing: each pointer must be dense memory of the GPU."""

    def __getitem__(self, grid: object) -> Callable[..., None]:
        return self._launch

    def _launch(self, *arguments: Any, **_: Any) -> None:
        for tensor in (a for a in arguments if isinstance(a, Tensor)):
            assert tensor.is_cuda, f"Triton gets {tuple(tensor.shape)} on {tensor.device}"
            assert tensor.is_contiguous()


def _apply(self: nn.Module, change: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """Module._apply, which refuses to exchange a fake tensor that something else refers to."""
    for child in self.children():
        child._apply(change)
    for name, parameter in self._parameters.items():
        if parameter is not None:
            changed = nn.Parameter(change(parameter.detach()), parameter.requires_grad)
            self._parameters[name] = changed
    for name, buffer in self._buffers.items():
        self._buffers[name] = change(buffer) if buffer is not None else None
    return self


def _deepcopy(self: Tensor, memo: dict[int, Any]) -> Tensor:
    copied: Tensor = memo.setdefault(id(self), self.detach().clone())
    return copied.requires_grad_(self.requires_grad)


@contextmanager
def fake_gpu() -> Iterator[Waits]:
    """Inside, `cuda` is a GPU without values, and tensors that are made are fake."""
    waits, empty = Waits(), torch.empty
    from_numpy, numpy = torch.from_numpy, torch.Tensor.numpy

    def real(array: Any) -> Tensor:
        with _disable_current_modes():
            return from_numpy(array)

    def array(self: Tensor) -> Any:
        with _disable_current_modes():
            return numpy(self)

    def pinned(self: Tensor) -> Tensor:
        if waits.is_pinned(self):
            return self
        waits.pinned_late += self.nbytes
        with _disable_current_modes():
            return waits.pin(self.clone())

    def made(*size: Any, pin_memory: bool = False, **options: Any) -> Tensor:
        if not pin_memory:
            return empty(*size, **options)
        with _disable_current_modes():
            return waits.pin(empty(*size, **options))

    def record(self: Tensor, stream: Stream) -> None:
        waits.record(self, stream)

    def waiting(*_: object) -> None:
        raise HostWaits("torch.cuda.synchronize")

    replaced: dict[str, Callable[..., Any]] = {
        "torch.cuda.is_available": lambda: True,
        "torch.cuda.device_count": lambda: 1,
        "torch.cuda.set_device": lambda _: None,
        "torch.cuda.get_device_name": lambda _=None: _PROPERTIES.name,
        "torch.cuda.get_device_capability": lambda _=None: (_PROPERTIES.major, _PROPERTIES.minor),
        "torch.cuda.get_device_properties": lambda _=None: _PROPERTIES,
        "torch.cuda.is_bf16_supported": lambda *_: True,
        "torch.cuda.amp.common.amp_definitely_not_available": lambda: False,
        "torch.cuda.get_rng_state": lambda _=None: real(np.zeros(16, np.uint8)),
        "torch.cuda.set_rng_state": lambda *_: None,
        "torch.cuda.synchronize": waiting,
        "torch.cuda.device_of": lambda _: nullcontext(),
        "torch.cuda.Stream": Stream,
        "torch.cuda.current_stream": lambda _=None: waits.stream,
        "torch.cuda.stream": waits.in_stream,
        "torch.Tensor.pin_memory": pinned,
        "torch.Tensor.record_stream": record,
        "torch.empty": made,
        "torch.from_numpy": real,
        "torch.Tensor.numpy": array,
        "torch.Tensor.__deepcopy__": _deepcopy,
        "fastselfie.kernels.impl.launch_fault": lambda: None,
        "torch.nn.Module._apply": _apply,
    }
    with ExitStack() as stack:
        for name, value in replaced.items():
            stack.enter_context(mock.patch(name, value))
        stack.enter_context(mock.patch.object(patchify_triton, "patch", _Program()))
        # Else it would move constants to the GPU at once, which there is not.
        there_is_none = property(lambda self: True)
        stack.enter_context(mock.patch.object(FakeTensorMode, "avoid_device_init", there_is_none))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(waits)
        yield waits
