"""A Ray cluster of several nodes on this machine, for tests and for reliability.py."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Of the shared memory of each node: the least that Ray takes.
_STORE = 80 * 2**20


@contextmanager
def local_cluster(nodes: int) -> Iterator[Any]:
    """Start a head that runs no tasks, and `nodes` nodes of one core; end them all at last."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": _STORE}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(nodes):
            add_node(cluster)
        yield cluster
    finally:
        cluster.shutdown()


def add_node(cluster: Any) -> Any:
    """Start one more node."""
    return cluster.add_node(num_cpus=1, object_store_memory=_STORE)


def lose_node(cluster: Any) -> None:
    """Kill the oldest node that runs tasks, and start another."""
    node = next(node for node in cluster.list_all_nodes() if node is not cluster.head_node)
    cluster.remove_node(node, allow_graceful=False)
    add_node(cluster)


def workers_of(out: Path) -> list[int]:
    """Return the processes that hold a file in `out` open: those that train into it."""
    whole = f"{out.resolve()}/"
    found = []
    for entry in Path("/proc").iterdir():
        try:
            held = [str(link.readlink()) for link in (entry / "fd").iterdir()]
        except OSError:  # it has ended, or is not a process
            continue
        if any(path.startswith(whole) for path in held):
            found.append(int(entry.name))
    return found
