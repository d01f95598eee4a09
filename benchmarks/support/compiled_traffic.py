"""Count the bytes that inductor's kernels move, by lowering a graph without generating code.

Inductor plans its kernels for the GPU that torch reports; see fake_h100.py. Its own estimate is
taken for each of them: every buffer that a kernel reads or writes counts once, at most with the
elements that it touches. A convolution's backward pass is two kernels, for the gradients of the
input and of the weight, which both read the incoming gradient: the second time is a group of its
own. Our custom operators are opaque to inductor, and counted by what they launch.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import fx
from torch._inductor import compile_fx
from torch._inductor.graph import GraphLowering
from torch._inductor.memory import estimate_peak_memory, get_freeable_input_buf
from torch._library.custom_ops import OPDEFS
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._ordered_set import OrderedSet
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves

from support.step_traffic import EagerTraffic
from support.traffic_groups import ATTENTION, CASTS, CONVOLUTIONS, NORMS, POOL, READ_AGAIN, SCORE

_compile = torch.compile


class _Planned(BaseException):
    """Ends the lowering of a graph, behind the planning of its kernels."""


class CompiledTraffic:
    """Stands in for torch.compile, and counts what the kernels would move.

    Args:
        shapes: Of the parameters: a kernel that only converts such a tensor is a cast.

    Attributes:
        bytes: By direction, forward or backward, and group.
        kernels: Their number, by direction. Views and allocations are none.
        peak: The largest sum of a graph's intermediate tensors, by inductor's estimate.
    """

    def __init__(self, shapes: set[tuple[int, ...]]) -> None:
        self.shapes = shapes
        self.bytes: dict[str, Counter[str]] = {"forward": Counter(), "backward": Counter()}
        self.kernels: Counter[str] = Counter()
        self.peak = 0

    def compile(self, model: Any, **_: Any) -> Any:
        """Return a function that runs `model` as it is; its first call lowers it."""
        return _compile(model, backend=self._backend, fullgraph=True)

    def _backend(self, graph: fx.GraphModule, inputs: Any) -> Any:
        return compile_fx.compile_fx(graph, inputs, inner_compile=self._lower)  # type: ignore[arg-type]

    def _lower(self, graph: fx.GraphModule, inputs: Any, **settings: Any) -> Callable[..., Any]:
        unchanged = fx.GraphModule(graph, copy.deepcopy(graph.graph))  # inductor changes its own

        def plan(lowering: GraphLowering) -> None:
            lowering._update_scheduler()
            self._count(lowering)
            raise _Planned

        try:
            with mock.patch.object(GraphLowering, "compile_to_module", plan):
                compile_fx.compile_fx_inner(graph, inputs, **settings)
        except _Planned:
            pass
        direction = "backward" if settings.get("is_backward") else "forward"
        for node in unchanged.graph.nodes:
            if node.op == "call_function" and _is_ours(node.target):
                self.bytes[direction] += launched_bytes(node)

        def run(arguments: list[Any]) -> Any:
            given = list(arguments)
            arguments.clear()
            return unchanged.forward(*given)

        run._boxed_call = True  # type: ignore[attr-defined]
        return run

    def _count(self, lowering: GraphLowering) -> None:
        direction = "backward" if lowering.is_backward else "forward"
        found, nodes = self.bytes[direction], lowering.scheduler.nodes
        for node in nodes:
            origins = [o for n in node.get_nodes() if n.node for o in n.node.get_origins()]
            planned: Any = node.node
            operator = getattr(planned, "op_overload", None)
            if _is_ours(operator):
                continue
            moved = node.get_read_write_buffers_sizes()
            found[self._group(node, origins)] += int(moved)
            self.kernels[direction] += moved > 0
            if operator is torch.ops.aten.convolution_backward.default:
                incoming = planned.inputs[0]
                found[READ_AGAIN] += int(incoming.get_numel()) * incoming.get_dtype().itemsize
        inputs, outputs = (
            OrderedSet(names) for names in (lowering.graph_inputs, lowering.get_output_names())
        )
        peak, _ = estimate_peak_memory(nodes, get_freeable_input_buf(nodes, inputs), outputs)
        self.peak = max(self.peak, int(peak))

    def _group(self, node: Any, origins: list[fx.Node]) -> str:
        """Return what a kernel belongs to. One that is fused from several counts for the first."""
        names = {str(origin.target) for origin in origins}
        stacks = (
            origin.meta.get("nn_module_stack") or origin.meta.get("fwd_nn_module_stack")
            for origin in origins
        )
        modules = {list(stack.values())[-1][0] for stack in stacks if stack}
        if node.is_extern() and any("convolution" in name for name in names):
            return CONVOLUTIONS
        outputs = [out.node for out in node.get_outputs() if out.node.maybe_get_dtype()]
        shapes = {tuple(map(int, out.get_size())) for out in outputs}
        if all("convert_element_type" in name for name in names) and shapes <= self.shapes:
            return CASTS
        if any(".stem" in module for module in modules):
            return POOL
        if any(".patch_network" in module for module in modules):
            return NORMS
        return ATTENTION if any(".pooling" in module for module in modules) else SCORE


def _is_ours(target: Any) -> bool:
    return getattr(target, "namespace", None) == "fastselfie"


def launched_bytes(node: fx.Node) -> Counter[str]:
    """Count what one of our operators moves: its programs, and torch's operations around them.

    The product of `pointwise_norm_relu` is a convolution, which also reads the shortcut.
    """
    arguments = fx.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    fake = next(v for v in tree_leaves(arguments) if isinstance(v, FakeTensor))
    definition = OPDEFS[node.target._schema.name]  # type: ignore[union-attr]
    with _disable_current_modes(), fake.fake_mode, EagerTraffic() as traffic:
        definition._init_fn(*arguments[0], **arguments[1])
    name = str(node.target)
    group = SCORE if "score" in name else POOL if "max_pool" in name else NORMS
    products = traffic.programs["multiply"]
    return Counter({group: traffic.total - products, CONVOLUTIONS: products})
