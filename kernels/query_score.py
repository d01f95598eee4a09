"""The Selfie loss of queries that are given, and its gradients in one kernel launch.

For `model.query: pooled`. `reference.query_score` defines the operation; `impl` changes only the
speed. The Triton kernel is in query_score_triton.py, which is imported on first use. This module
contains, in order: the public function, the custom operator for torch.library, and its gradient.

Shapes: B images, M masked, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastselfie.kernels import reference
from fastselfie.kernels.fused_loss import refusal, scaled, storing_factor
from fastselfie.kernels.impl import Impl, check_impl


def query_score(v: Tensor, h: Tensor, scale: float, impl: Impl = "auto") -> tuple[Tensor, Tensor]:
    """Compute the Selfie loss of given queries, and count the correct answers.

    See `reference.query_score`. NaN, a second backward pass and float16 are as in
    `distractor_score.distractor_score`.

    Args:
        v: (B, M, D), a query for each masked location. A view with a dense last dimension is not
            copied.
        h: (B, M, D), the masked patches; the same of views.
        scale: A factor of the scores.
        impl: auto uses Triton for tensors on a GPU if it is installed and takes the arguments,
            else the reference. Triton takes float32, bfloat16 and float16, any D and M up to 64; on
            a CPU only with TRITON_INTERPRET=1.

    Returns:
        The loss, () float32, or wider for wider arguments; and the correct answers, () int64, out
        of B x M.

    Raises:
        ValueError: Shapes or devices differ, or `impl` cannot take the arguments.
    """
    if h.dim() != 3:
        raise ValueError(f"h has shape {tuple(h.shape)}: it must be (B, M, D)")
    if v.shape != h.shape:
        raise ValueError(f"v has shape {tuple(v.shape)}: it must be {tuple(h.shape)} as h has it")
    if v.device != h.device:
        raise ValueError(f"v is on {v.device}, h on {h.device}")
    check_impl(impl)
    reason = None if impl == "reference" else refusal(h, ("v", v))
    if impl == "triton" and reason:
        raise ValueError(reason)
    if impl == "reference" or (impl == "auto" and (reason or not h.is_cuda)):
        return reference.query_score(v, h, scale)
    gradients = torch.is_grad_enabled() and (v.requires_grad or h.requires_grad)
    loss, correct, *_ = _score(v, h, scale, gradients)
    return loss, correct


# --- custom operator ------------------------------------------------------------------------------


@torch.library.custom_op(
    "fastselfie::query_score",
    mutates_args=(),
    schema="(Tensor v, Tensor h, float scale, bool gradients) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _score(
    v: Tensor, h: Tensor, scale: float, gradients: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return loss, correct, dv and dh. `storing_factor` is the factor of the gradients."""
    from fastselfie.kernels import query_score_triton as program

    v, h = (x if x.stride(-1) == 1 else x.contiguous() for x in (v, h))
    with torch.cuda.device_of(h):  # type: ignore[no-untyped-call]
        return program.score(v, h, scale, storing_factor(v, h, scale), gradients)


@_score.register_fake
def _(v: Tensor, h: Tensor, scale: float, gradients: bool) -> tuple[Tensor, ...]:
    loss = h.new_empty((), dtype=torch.float32)
    correct = h.new_empty((), dtype=torch.int64)
    shape = h.shape if gradients else (0,)
    return loss, correct, v.new_empty(shape), h.new_empty(shape)


# --- gradient -------------------------------------------------------------------------------------


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    v, h, scale, _gradients = inputs
    _loss, correct, dv, dh = output
    ctx.mark_non_differentiable(correct, dv, dh)
    ctx.set_materialize_grads(False)  # else torch allocates zeros for dv and dh
    ctx.save_for_backward(dv, dh)
    ctx.remaining = 1.0 / (h.shape[0] * h.shape[1] * storing_factor(v, h, scale))


def _gradient(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    factor = grad_loss * ctx.remaining
    gradients = (
        scaled(stored, factor) if asked else None
        for stored, asked in zip(ctx.saved_tensors, ctx.needs_input_grad[:2], strict=True)
    )
    return *gradients, None, None


_score.register_autograd(_gradient, setup_context=_keep)
