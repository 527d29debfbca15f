"""Layers against PyTorch's published rules, and one device against four."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg import ops
from jaxseg.errors import ConfigError
from jaxseg.models import layers, pooling
from jaxseg.models.layers import BatchNorm, ChannelDropout, Conv


def _random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def test_same_padding_puts_the_odd_pixel_at_the_end():
    x = jnp.arange(4.0).reshape(1, 1, 4, 1)
    y = Conv(1, (1, 3), stride=2, padding="same").apply(
        {"params": {"kernel": jnp.ones((1, 3, 1, 1))}}, x
    )
    np.testing.assert_array_equal(y.ravel(), [0 + 1 + 2, 2 + 3])


def test_a_convolution_refuses_a_padding_it_does_not_know():
    with pytest.raises(ConfigError):
        Conv(1, padding="valid").init(jax.random.key(0), jnp.ones((1, 4, 4, 1)))


def test_the_normalisation_of_images_stays_importable_from_layers():
    assert layers.normalize is ops.normalize


def test_bilinear_resize_follows_pytorch():
    x = jnp.asarray([0.0, 1.0, 4.0]).reshape(1, 1, 3, 1)
    # Hand-worked: sample positions (i + 0.5) / 2 - 0.5, the first and last clamped.
    np.testing.assert_allclose(
        ops.resize_bilinear(x, (1, 6)).ravel(), [0, 0.25, 0.75, 1.75, 3.25, 4], atol=1e-6
    )
    np.testing.assert_allclose(
        ops.resize_bilinear(x, (1, 5), align_corners=True).ravel(), [0, 0.5, 1, 2.5, 4], atol=1e-6
    )
    # Shrinking takes two taps and does not antialias: positions 1/4 apart from pixel 0.25.
    np.testing.assert_allclose(ops.resize_bilinear(x, (1, 2)).ravel(), [0.25, 3.25], atol=1e-6)


def test_nearest_resize_takes_the_floor():
    x = jnp.arange(3.0).reshape(1, 1, 3, 1)
    np.testing.assert_array_equal(ops.resize_nearest(x, (1, 7)).ravel(), [0, 0, 0, 1, 1, 2, 2])


def test_adaptive_pool_has_pytorchs_overlapping_bins():
    x = jnp.arange(5.0).reshape(1, 1, 5, 1)
    np.testing.assert_allclose(pooling.adaptive_avg_pool(x, (1, 3)).ravel(), [0.5, 2, 3.5])


def test_average_pool_counts_a_partial_window_only_where_it_is():
    x = jnp.arange(5.0).reshape(1, 1, 5, 1).repeat(2, axis=1)
    pooled = pooling.avg_pool(x, 2, 2, count_include_pad=False, ceil_mode=True)
    np.testing.assert_allclose(pooled.ravel(), [0.5, 2.5, 4])


def test_max_pool_ignores_its_padding():
    assert float(pooling.max_pool(-jnp.ones((1, 2, 2, 1)), 3, 2, 1).max()) == -1


def test_normalize_zeroes_the_padding():
    image = jnp.full((2, 3, 4, 3), 100, jnp.uint8)
    x = ops.normalize(image, (10.0, 20.0, 30.0), (2.0, 2.0, 2.0), jnp.asarray([[3, 4], [2, 1]]))
    np.testing.assert_allclose(x[0, 0, 0], [45, 40, 35])
    assert x.dtype == jnp.float32
    assert (
        float(jnp.abs(x[1, 2]).sum() + jnp.abs(x[1, :, 1:]).sum()) == 0
        and float(x[1, 1, 0, 0]) == 45
    )


def test_batch_norm_normalises_and_keeps_the_unbiased_variance():
    x = 3 + 2 * _random(4, 5, 6, 7)
    norm = BatchNorm(momentum=0.5)
    variables = norm.init(jax.random.key(0), x, train=False)
    y, changed = norm.apply(variables, x, train=True, mutable=["batch_stats"])
    flat = np.asarray(x, np.float64).reshape(-1, 7)
    np.testing.assert_allclose(
        y.reshape(-1, 7), (flat - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5), atol=1e-5
    )
    np.testing.assert_allclose(changed["batch_stats"]["mean"], 0.5 * flat.mean(0), rtol=1e-5)
    np.testing.assert_allclose(
        changed["batch_stats"]["var"], 0.5 + 0.5 * flat.var(0, ddof=1), rtol=1e-5
    )


def test_batch_norm_is_accurate_for_a_large_mean_once_it_is_running():
    x = 1e4 + _random(8, 8, 8, 3)
    norm = BatchNorm(momentum=0.0)
    stats = {"mean": jnp.full(3, 1e4), "var": jnp.ones(3)}
    variables = {"params": {"scale": jnp.ones(3), "bias": jnp.zeros(3)}, "batch_stats": stats}
    _, changed = norm.apply(variables, x, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(
        changed["batch_stats"]["var"],
        np.asarray(x, np.float64).reshape(-1, 3).var(0, ddof=1),
        rtol=1e-3,
    )


@pytest.mark.parametrize(
    "make",
    [lambda axis: BatchNorm(axis_name=axis), lambda axis: ChannelDropout(0.5, axis_name=axis)],
    ids=["norm", "dropout"],
)
def test_four_devices_equal_one(make):
    x, key = _random(8, 3, 3, 5), jax.random.key(7)
    variables = make(None).init(key, x, train=False)

    def run(module, x):
        return module.apply(
            variables, x, train=True, mutable=["batch_stats"], rngs={"dropout": key}
        )

    one, one_stats = run(make(None), x)
    four, four_stats = jax.pmap(functools.partial(run, make("batch")), axis_name="batch")(
        x.reshape(4, 2, 3, 3, 5)
    )
    np.testing.assert_allclose(four.reshape(x.shape), one, atol=1e-5)
    for a, b in zip(jax.tree.leaves(four_stats), jax.tree.leaves(one_stats)):
        np.testing.assert_allclose(a, np.broadcast_to(b, a.shape), rtol=1e-5, atol=1e-6)


def test_dropout_drops_whole_channels_and_keeps_the_mean():
    x = jnp.ones((64, 2, 2, 32))
    y = ChannelDropout(0.25).apply({}, x, train=True, rngs={"dropout": jax.random.key(0)})
    assert bool((y == y[:, :1, :1]).all()) and set(np.unique(y.round(4))) == {
        0.0,
        np.float32(1.3333),
    }
    assert abs(float(y.mean()) - 1) < 0.05
    assert ChannelDropout(0.25).apply({}, x, train=False) is x


@pytest.mark.parametrize(
    "shape, axis_name, devices",
    [((1, 1, 1, 3), None, 1), ((1, 3), None, 1), ((1, 1, 1, 3), "batch", 1)],
)
def test_batch_norm_of_one_value_is_refused(shape, axis_name, devices):
    norm, x = BatchNorm(axis_name=axis_name), jnp.ones((devices, *shape))
    variables = norm.init(jax.random.key(0), x[0], train=True)  # initialising is not training

    def train(x):
        return norm.apply(variables, x, train=True, mutable=["batch_stats"])

    with pytest.raises(ConfigError) as error:
        jax.vmap(train, axis_name=axis_name or "other")(x)
    assert (
        error.value.field == "batch_size"
        and "1 value" in error.value.problem
        and "batch_size=2" in error.value.hint
    )
    norm.apply(variables, x[0], train=False)
    frozen = BatchNorm(frozen=("",))
    np.testing.assert_array_equal(
        frozen.apply(variables, x[0], train=True), norm.apply(variables, x[0], train=False)
    )


@pytest.mark.parametrize(
    "shape, devices", [((2, 1, 1, 3), 1), ((1, 2, 1, 3), 1), ((1, 1, 1, 3), 2)]
)
def test_batch_norm_of_two_values_is_not(shape, devices):
    norm, x = BatchNorm(axis_name="batch"), _random(devices, *shape)
    variables = norm.init(jax.random.key(0), x[0], train=False)
    _, changed = jax.vmap(
        lambda x: norm.apply(variables, x, train=True, mutable=["batch_stats"]), axis_name="batch"
    )(x)
    np.testing.assert_allclose(
        changed["batch_stats"]["var"][0], 0.9 + 0.1 * x.reshape(-1, 3).var(0, ddof=1), rtol=1e-5
    )
