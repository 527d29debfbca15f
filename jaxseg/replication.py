"""Pytrees on several devices, and back on the host."""

from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Tree = TypeVar("Tree")


def replicate(
    tree: Tree, devices: Sequence[jax.Device] | None = None, axis_name: str = "batch"
) -> Tree:
    """Copy a pytree onto every device, in the layout of a pmap's replicated outputs.

    A pmap with the same `axis_name` then compiles once for these inputs and for its own outputs.

    Args:
        tree: Arrays on the host or on devices; of a replicated array one copy is used.
        devices: Where to put the copies; all devices of all processes by default.
        axis_name: Name of the mesh axis.

    Returns:
        The pytree with replicated arrays.
    """
    mesh = Mesh(np.asarray(jax.devices() if devices is None else devices), (axis_name,))
    return jax.device_put(to_host(tree), NamedSharding(mesh, PartitionSpec()))


def to_host(tree: Tree) -> Tree:
    """Return a replicated pytree on the host as NumPy arrays; processes do not communicate."""

    def local(leaf: Any) -> Any:
        return leaf.addressable_data(0) if isinstance(leaf, jax.Array) else leaf

    return jax.device_get(jax.tree.map(local, tree))
