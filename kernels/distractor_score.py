"""The Selfie loss and all its gradients in one kernel launch: scores, softmax, cross-entropy.

`reference.py` defines the operation; `impl` changes only the speed. The Triton kernel is in
distractor_score_triton.py, which is imported on first use. This module contains, in order: the
public function, the checks of its arguments, the custom operator for torch.library (and so for
torch.compile and CUDA graphs), and its gradient.

Shapes: B images, N patches, M masked, D width, G x G' = N the grid.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastselfie.kernels import reference
from fastselfie.kernels.fused_loss import refusal, scaled, storing_factor
from fastselfie.kernels.impl import Impl, check_impl, is_eager

Positions = Tensor | tuple[Tensor, Tensor]

MAX_TABLE_ROWS = 256  # the scores of the table are held in registers
AUTO_TABLE_ROWS = 64  # above this, some GPUs have too little shared memory


def distractor_score(
    u: Tensor, h: Tensor, positions: Positions, locations: Tensor, scale: float, impl: Impl = "auto"
) -> tuple[Tensor, Tensor]:
    """Compute the Selfie loss and count the correct answers; see `reference.distractor_score`.

    A NaN in u, h or positions makes the loss NaN. A location outside of the grid is an error on a
    CPU. On a GPU it makes the loss NaN with Triton, because raising an error would wait for the
    GPU; the reference fails like torch's indexing. With Triton a location with a NaN score is not
    correct, but the argmax of the reference takes NaN for the maximum.

    The Triton gradients are computed in the forward pass and scaled in place in the backward pass.
    So a second backward pass through the same graph (retain_graph) is an error. In float16 they
    are infinite if the gradient of an image's loss, summed over its locations, is above about
    500 x scale.

    Args:
        u: (B, D), the summary of the visible patches.
        h: (B, M, D), the masked patches. A view with a dense last dimension is not copied.
        positions: (N, D), one vector for each location; or a tuple of rows (G, D) and columns
            (G', D), where location row * G' + column has the sum of two vectors.
        locations: (B, M) int64 or int32 in [0, N), where the masked patches were.
        scale: A factor of the scores.
        impl: auto uses Triton for tensors on a GPU if it is installed and takes the arguments,
            else the reference. Triton takes float32, bfloat16 and float16, any D, M up to 64
            (auto: from 2), and 256 rows in both tables (auto: 64); on a CPU only with
            TRITON_INTERPRET=1.

    Returns:
        The loss, () float32, or wider for wider arguments; and the correct answers, () int64, out
        of B x M.

    Raises:
        ValueError: Shapes or devices differ, a location is outside of the grid (on a CPU, unless
            torch.compile traces), or `impl` cannot take the arguments.
    """
    _check(u, h, positions, locations)
    check_impl(impl)
    reason = None if impl == "reference" else _refusal(u, h, positions)
    if impl == "triton" and reason:
        raise ValueError(reason)
    # With one candidate the loss is always 0, and no tile is without spills.
    fast = h.is_cuda and h.shape[1] > 1 and table_rows(positions) <= AUTO_TABLE_ROWS
    if impl == "reference" or (impl == "auto" and (reason or not fast)):
        return reference.distractor_score(u, h, summed(positions), locations, scale)
    rows, columns = (positions, None) if isinstance(positions, Tensor) else positions
    differentiable = [t for t in (u, h, rows, columns) if t is not None]
    gradients = torch.is_grad_enabled() and any(t.requires_grad for t in differentiable)
    loss, correct, *_ = _score(u, h, rows, columns, locations, scale, gradients)
    return loss, correct


def summed(positions: Positions) -> Tensor:
    """Return the vector of every location, (N, D), from one table or from rows and columns."""
    if isinstance(positions, Tensor):
        return positions
    rows, columns = positions
    return (rows[:, None] + columns[None]).flatten(0, 1)


def table_rows(positions: Positions) -> int:
    """Return the number of vectors in the table, or in both tables."""
    return len(positions) if isinstance(positions, Tensor) else sum(map(len, positions))


# --- argument checks ------------------------------------------------------------------------------


def _check(u: Tensor, h: Tensor, positions: Positions, locations: Tensor) -> None:
    tables = (positions,) if isinstance(positions, Tensor) else positions
    if h.dim() != 3:
        raise ValueError(f"h has shape {tuple(h.shape)}: it must be (B, M, D)")
    b, m, d = h.shape
    if u.shape != (b, d):
        raise ValueError(f"u has shape {tuple(u.shape)}: it must be (B, D) = {(b, d)} as h has it")
    for table in tables:
        if table.dim() != 2 or table.shape[1] != d:
            raise ValueError(f"positions has shape {tuple(table.shape)}: D is {d} as h has it")
    if locations.shape != (b, m) or locations.dtype not in (torch.int64, torch.int32):
        raise ValueError(
            f"locations is {locations.dtype} of shape {tuple(locations.shape)}: it must be int64 "
            f"or int32 of shape (B, M) = {(b, m)} as h has it"
        )
    for name, tensor in (("u", u), ("locations", locations), *(("positions", t) for t in tables)):
        if tensor.device != h.device:
            raise ValueError(f"{name} is on {tensor.device}, h on {h.device}")
    if h.device.type == "cpu" and is_eager(locations) and locations.numel():
        n = len(tables[0]) * (len(tables[1]) if len(tables) > 1 else 1)
        places = locations.numpy()  # NumPy: no torch operation that a device would wait for
        low, high = int(places.min()), int(places.max())
        if low < 0 or high >= n:
            raise ValueError(f"locations has {low if low < 0 else high}: N is {n}")


def _refusal(u: Tensor, h: Tensor, positions: Positions) -> str | None:
    if table_rows(positions) > MAX_TABLE_ROWS:
        return f"positions has {table_rows(positions)} rows: impl triton takes {MAX_TABLE_ROWS}"
    tables = (positions,) if isinstance(positions, Tensor) else positions
    return refusal(h, ("u", u), *(("positions", table) for table in tables))


# --- custom operator ------------------------------------------------------------------------------


@torch.library.custom_op(
    "fastselfie::distractor_score",
    mutates_args=(),
    schema="(Tensor u, Tensor h, Tensor rows, Tensor? columns, Tensor locations, float scale, "
    "bool gradients) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _score(
    u: Tensor, h: Tensor, rows: Tensor, columns: Tensor | None, locations: Tensor, scale: float,
    gradients: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return loss, correct, du, dh and dtables. `storing_factor` is the factor of the gradients."""
    from fastselfie.kernels import distractor_score_triton as program

    u, h = (x if x.stride(-1) == 1 else x.contiguous() for x in (u, h))
    rows, columns = rows.contiguous(), None if columns is None else columns.contiguous()
    stored = storing_factor(u, h, scale)
    with torch.cuda.device_of(h):  # type: ignore[no-untyped-call]
        return program.score(u, h, rows, columns, locations, scale, stored, gradients)


@_score.register_fake
def _(u: Tensor, h: Tensor, rows: Tensor, columns: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    _locations, _scale, gradients = rest
    loss = h.new_empty((), dtype=torch.float32)
    correct = h.new_empty((), dtype=torch.int64)
    if not gradients:
        return loss, correct, u.new_empty(0), h.new_empty(0), loss.new_empty(0)
    n = len(rows) + (0 if columns is None else len(columns))
    dtables = loss.new_empty((n, h.shape[2]))
    return loss, correct, u.new_empty(u.shape), h.new_empty(h.shape), dtables


# --- gradient -------------------------------------------------------------------------------------


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    u, h, rows, columns, _locations, scale, _gradients = inputs
    _loss, correct, du, dh, dtables = output
    ctx.mark_non_differentiable(correct, du, dh, dtables)
    ctx.set_materialize_grads(False)  # else torch allocates zeros for du, dh and dtables
    ctx.save_for_backward(du, dh, dtables)
    ctx.remaining = 1.0 / (h.shape[0] * h.shape[1] * storing_factor(u, h, scale))
    ctx.n_rows = len(rows)
    ctx.types = [None if t is None else t.dtype for t in (u, h, rows, columns)]


def _gradient(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    du, dh, dtables = ctx.saved_tensors
    factor = grad_loss * ctx.remaining
    parts = (du, dh, dtables[: ctx.n_rows], dtables[ctx.n_rows :])
    gradients = (
        scaled(part, factor).to(dtype) if asked else None
        for part, dtype, asked in zip(parts, ctx.types, ctx.needs_input_grad[:4], strict=True)
    )
    return *gradients, None, None, None


_score.register_autograd(_gradient, setup_context=_keep)
