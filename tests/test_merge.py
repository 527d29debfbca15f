"""Merging weights by name and shape: what is replaced, what the report says, when it is refused."""

import jax
import numpy as np
import pytest

from jaxseg.errors import WeightsError
from jaxseg.weights.merge import merge
from jaxseg.weights.mmseg import MMSEG

VARIABLES = {
    "params": {
        "backbone": {"conv1": {"kernel": np.zeros((3, 3, 2, 4), np.float32)}},
        "decode_head": {"conv_seg": {"bias": np.zeros(5, np.float32)}},
    },
    "batch_stats": {"backbone": {"bn1": {"mean": np.zeros(4, np.float32)}}},
}
KERNEL, BIAS = "params/backbone/conv1/kernel", "params/decode_head/conv_seg/bias"
MEAN = "batch_stats/backbone/bn1/mean"


def test_what_has_the_same_name_and_shape_is_replaced():
    source = {
        KERNEL: np.ones((3, 3, 2, 4), np.float64),
        BIAS: np.ones(7),
        "params/neck/bias": np.ones(3),
    }
    merged, report = merge(VARIABLES, source)
    kernel = merged["params"]["backbone"]["conv1"]["kernel"]
    assert kernel.dtype == np.float32 and np.all(kernel == 1)
    assert merged["params"]["decode_head"] == VARIABLES["params"]["decode_head"]
    assert np.all(VARIABLES["params"]["backbone"]["conv1"]["kernel"] == 0)
    assert report.loaded == (KERNEL,) and report.missing == {MEAN: (4,)}
    assert report.mismatched == {BIAS: ((7,), (5,))}
    assert report.unused == {"params/neck/bias": (3,)} and report.classes == ""


def test_shapes_alone_can_be_filled():
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), VARIABLES)
    source = {KERNEL: np.ones((3, 3, 2, 4)), BIAS: np.ones(5), MEAN: np.ones(4)}
    merged, report = merge(shapes, source)
    assert jax.tree.structure(merged) == jax.tree.structure(VARIABLES)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(merged))
    report.raise_if_incomplete()
    report.require_backbone()


def test_pytorch_kernels_are_transposed():
    weights = np.random.default_rng(0).normal(size=(4, 2, 3, 3)).astype(np.float32)
    merged, report = merge(VARIABLES, {"backbone.conv1.weight": weights}, MMSEG)
    kernel = merged["params"]["backbone"]["conv1"]["kernel"]
    np.testing.assert_array_equal(kernel, weights.transpose(2, 3, 1, 0))
    assert kernel.flags.c_contiguous
    assert report.missing == {"decode_head.conv_seg.bias": (5,), "backbone.bn1.running_mean": (4,)}


def test_the_backbone_must_fit_entirely():
    whole = {KERNEL: np.ones((3, 3, 2, 4)), MEAN: np.ones(4)}
    merge(VARIABLES, whole)[1].require_backbone()  # the head may be missing
    for source, name in (
        ({KERNEL: whole[KERNEL]}, MEAN),
        ({**whole, KERNEL: np.ones((1, 1, 2, 4))}, KERNEL),
        ({**whole, "params/backbone/conv2/kernel": np.ones(2)}, "params/backbone/conv2/kernel"),
        ({"params/other": np.ones(2)}, "params/other"),
    ):
        with pytest.raises(WeightsError) as error:
            merge(VARIABLES, source)[1].require_backbone()
        assert name in error.value.problem


def test_the_table_counts_and_names_the_modules():
    source = {KERNEL: np.ones((3, 3, 2, 4)), BIAS: np.ones(7)}
    lines = merge(VARIABLES, source)[1].format("x.pth").splitlines()
    assert lines == [
        "initial weights from x.pth:",
        "  loaded                           1  backbone/conv1",
        "  re-initialised (absent)          1  backbone/bn1",
        "  re-initialised (other shape)     1  decode_head/conv_seg",
        "  unused                           0",
    ]


def test_what_is_not_finite_is_refused():
    with pytest.raises(WeightsError) as error:
        merge(VARIABLES, {MEAN: np.array([0, np.nan, 0, 0])})
    assert MEAN in error.value.problem
    merge(VARIABLES, {"unused": np.array([np.nan])})
