"""The side of a task that runs on a node of a Ray cluster."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from fastselfie import __version__
from fastselfie.errors import UserError
from fastselfie.system.signals import Interrupted

Result = TypeVar("Result")


class TaskLost(Exception):
    """A task ended without a result, because its process, its node or its data was lost."""


def run_on_node(
    version: str, folder: str, work: Callable[..., Result], arguments: Sequence[Any]
) -> Result:
    """Call `work` in a process of Ray's.

    Args:
        version: Of fastselfie on the machine that sent the task.
        folder: Its working directory, for relative paths.
        work: The function to call.
        arguments: Its arguments.

    Raises:
        TaskLost: A signal stopped the work, after it had saved.
    """
    if version != __version__:
        raise UserError(
            f"node {node_address()}: has fastselfie {__version__}, not {version}: install the same "
            "on every node"
        )
    with suppress(OSError):  # a node may lack it, if all paths are absolute
        os.chdir(folder)
    try:
        return work(*arguments)
    except Interrupted as signal:
        raise TaskLost(f"{signal} on node {node_address()}") from None


@functools.cache
def node_address() -> str:
    """Return the address of this node, in a task."""
    import ray

    return str(ray.util.get_node_ip_address())
