"""Pytrees on several devices and back."""

import jax
import numpy as np
import pytest

from jaxseg.replication import replicate, to_host

TREE = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": [np.int32(3), None]}


@pytest.mark.parametrize("count", [1, 2, 4])
def test_there_and_back(count):
    devices = jax.devices()[:count]
    copied = replicate(TREE, devices)
    assert copied["a"].sharding.device_set == set(devices)
    assert copied["a"].sharding.is_fully_replicated
    back = to_host(copied)
    assert jax.tree.structure(back) == jax.tree.structure(TREE)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(back))
    jax.tree.map(np.testing.assert_array_equal, back, TREE)


def test_the_layout_is_that_of_a_pmaps_outputs():
    def add_mean(total, batch):
        return total + jax.lax.pmean(batch, "batch")

    step = jax.pmap(add_mean, axis_name="batch", in_axes=(None, 0), out_axes=None)
    first = replicate(np.zeros(3, np.float32))
    second = step(first, np.ones((4, 3), np.float32))
    assert second.sharding == first.sharding


def test_copies_move_between_devices():
    copied = replicate(replicate(TREE, jax.devices()[:2]), jax.devices()[2:], axis_name="device")
    assert copied["a"].sharding.device_set == set(jax.devices()[2:])
    assert copied["a"].sharding.mesh.axis_names == ("device",)
    np.testing.assert_array_equal(to_host(copied)["a"], TREE["a"])
