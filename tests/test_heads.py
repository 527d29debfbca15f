"""What holds for every head, and each attention against a plain reading of its definition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.config import get_experiment
from jaxseg.config.schema import OptimizerConfig, ScheduleConfig, from_dict
from jaxseg.models import HEADS
from jaxseg.models.heads.cc import CrissCrossAttention
from jaxseg.models.heads.dm import filter_per_sample
from jaxseg.models.heads.ema import EMAttention
from jaxseg.models.heads.psa import PointwiseMask
from jaxseg.models.layers import Layers
from jaxseg.optim import make_optimizer

K, SIZES = 5, [(8, 10), (4, 5), (4, 5), (4, 5)]
LAYER = Layers(dropout_rate=0.0)
# What heads need on maps this small, and what makes them quick to compile.
OPTIONS = {
    "fpn": dict(feature_strides=(4, 8, 8, 8)),
    "lraspp": dict(small_input="global", branch_channels=(8, 8)),
    "point": dict(num_points=8, subdivision_points=8),
    "ocr": dict(ocr_channels=8),
    "ann": dict(project_channels=8, key_pool_scales=(1, 3)),
    "ema": dict(ema_channels=8, num_bases=4),
    "enc": dict(num_codes=4),
    "psa": dict(mask_size=(5, 6)),
    "dm": dict(filter_sizes=(1, 3)),
    **{name: dict(pool_scales=(1, 2)) for name in ("psp", "apc", "uper")},
}


def _random(*shape):
    return jnp.asarray(np.random.default_rng(sum(shape)).standard_normal(shape), jnp.float32)


def _filled(init, *arguments):
    """Variables of init(key, *arguments) with nothing at 0: blocks may start as the identity."""
    shapes = jax.eval_shape(
        lambda: init({"params": jax.random.key(0), "points": jax.random.key(0)}, *arguments)
    )
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        positive = path[-1].key in ("scale", "var")
        return jnp.asarray(
            rng.uniform(0.5, 1.5, leaf.shape)
            if positive
            else 0.3 * rng.standard_normal(leaf.shape),
            jnp.float32,
        )

    return jax.tree_util.tree_map_with_path(draw, shapes)


def _head(name, dtype=jnp.float32):
    return HEADS[name](
        num_classes=K,
        channels=8,
        layer=Layers(dropout_rate=0.0, dtype=dtype),
        **OPTIONS.get(name, {}),
    )


def _inputs(dtype=jnp.float32):
    return [_random(2, *size, 8).astype(dtype) for size in SIZES], _random(2, *SIZES[-1], K)


@pytest.mark.parametrize("name", HEADS)
def test_scores_are_float32_of_every_class_and_jit_changes_nothing(name):
    features, previous = _inputs()
    variables = _filled(functools.partial(_head(name).init, train=False), features, previous)

    apply, apply_low = (
        functools.partial(_head(name, dtype).apply, train=False)
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    logits, out = apply(variables, features, previous)
    for a, b in zip(
        jax.tree.leaves((logits, out)),
        jax.tree.leaves(jax.jit(apply)(variables, features, previous)),
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    low, low_out = jax.eval_shape(apply_low, variables, *_inputs(jnp.bfloat16))
    assert (
        logits.ndim == 4
        and logits.shape[0] == 2
        and logits.shape[-1] == K
        and logits.shape == low.shape
    )
    assert all(x.dtype == jnp.float32 for x in [logits, low, *out.values(), *low_out.values()])


@pytest.mark.parametrize("name", HEADS)
def test_training_reaches_every_kernel_and_is_finite(name):
    features, previous = _inputs()
    variables = _filled(functools.partial(_head(name).init, train=False), features, previous)
    state = {k: v for k, v in variables.items() if k != "params"}

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def step(params):
        apply = functools.partial(
            _head(name).apply, {"params": params, **state}, features, previous, train=True
        )
        (logits, out), changed = apply(
            mutable=["batch_stats", "bases"], rngs={"points": jax.random.key(0)}
        )
        return sum(jnp.square(x).sum() for x in [logits, *out.values()]), changed

    gradients, changed = step(variables["params"])
    for path, leaf in jax.tree_util.tree_leaves_with_path((gradients, changed)):
        assert np.isfinite(leaf).all(), jax.tree_util.keystr(path)
    still = {
        jax.tree_util.keystr(p)
        for p, g in jax.tree_util.tree_leaves_with_path(gradients)
        if p[-1].key == "kernel" and not g.any()
    }
    assert still == ({"['ema_mid_conv']['conv']['kernel']"} if name == "ema" else set())
    assert jax.tree.structure(changed) == jax.tree.structure(state)


@pytest.mark.parametrize(
    "name, key, shape",
    [("da", "pam", (2, 4, 5, K)), ("da", "cam", (2, 4, 5, K)), ("enc", "presence", (2, K))],
)
def test_what_heads_add_for_their_losses(name, key, shape):
    out = jax.eval_shape(
        lambda: _head(name).init_with_output(jax.random.key(0), *_inputs(), train=False)
    )[0][1]
    assert out[key].shape == shape


def test_criss_cross_attends_to_row_and_column_and_to_itself_once():
    x, module = _random(2, 3, 4, 8), CrissCrossAttention(LAYER)
    variables = _filled(module.init, x)
    kernels = {
        name: np.asarray(p["kernel"][0, 0], np.float64)
        for name, p in variables["params"].items()
        if name != "gamma"
    }
    biases = {
        name: np.asarray(p["bias"], np.float64)
        for name, p in variables["params"].items()
        if name != "gamma"
    }
    query, key, value = (
        np.asarray(x, np.float64) @ kernels[n] + biases[n]
        for n in ("query_conv", "key_conv", "value_conv")
    )
    expected = np.array(x, np.float64)
    for b, i, j in np.ndindex(2, 3, 4):
        seen = [(k, j) for k in range(3) if k != i] + [(i, k) for k in range(4)]
        weights = np.exp([query[b, i, j] @ key[b, p, q] for p, q in seen])
        context = sum(w * value[b, p, q] for w, (p, q) in zip(weights / weights.sum(), seen))
        expected[b, i, j] += float(variables["params"]["gamma"]["factor"]) * context
    np.testing.assert_allclose(module.apply(variables, x), expected, rtol=1e-5, atol=1e-5)


def _largest_array(jaxpr) -> int:
    sizes = [
        v.aval.size for equation in jaxpr.eqns for v in equation.outvars if hasattr(v.aval, "size")
    ]
    inner = [
        _largest_array(j)
        for e in jaxpr.eqns
        for p in e.params.values()
        for j in [getattr(p, "jaxpr", p)]
        if hasattr(j, "eqns")
    ]
    return max([*sizes, *inner], default=0)


def test_criss_cross_never_pairs_all_positions():
    x, module = jnp.zeros((1, 32, 48, 8)), CrissCrossAttention(LAYER)
    variables = jax.eval_shape(module.init, jax.random.key(0), x)
    assert _largest_array(jax.make_jaxpr(module.apply)(variables, x).jaxpr) <= 32 * 48 * (32 + 48)


@pytest.mark.parametrize("mask_size", [(3, 3), (4, 2), (5, 7), (9, 8), (14, 13), (1, 1)])
@pytest.mark.parametrize("size", [(4, 3), (1, 5)])
def test_a_positions_mask_lies_around_it(mask_size, size):
    (rows, columns), (height, width) = mask_size, size
    x, module = _random(1, height, width, 2), PointwiseMask(LAYER, mask_size)
    variables = _filled(module.init, x)
    masks = np.asarray(x)[0] @ np.asarray(variables["params"]["kernel"])[0, 0]
    masks = masks.reshape(height, width, rows, columns)
    expected = np.zeros((height, height, width, width))
    for i, j, p, q in np.ndindex(height, width, rows, columns):
        y, z = i + p - (rows - 1) // 2, j + q - (columns - 1) // 2
        if 0 <= y < height and 0 <= z < width:
            expected[i, y, j, z] = masks[i, j, p, q]
    np.testing.assert_allclose(module.apply(variables, x)[0], expected, atol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_every_sample_is_filtered_by_its_own_filter(size):
    x, filters = _random(2, 4, 5, 3), _random(2, size, size, 3)
    pads = (size // 2, (size - 1) // 2)
    convolve = functools.partial(
        jax.lax.conv_general_dilated,
        window_strides=(1, 1),
        padding=(pads, pads),
        feature_group_count=3,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    expected = jnp.concatenate([convolve(x[i : i + 1], filters[i][:, :, None]) for i in range(2)])
    np.testing.assert_allclose(filter_per_sample(x, filters), expected, rtol=1e-5, atol=1e-5)


def test_emanets_bases_are_the_same_on_four_devices_as_on_one():
    x = _random(8, 3, 4, 6)
    modules = [
        EMAttention(Layers(axis_name=axis), num_bases=4, num_stages=3, momentum=0.1)
        for axis in (None, "batch")
    ]
    variables = _filled(functools.partial(modules[0].init, train=False), x)
    one, changed = modules[0].apply(variables, x, train=True, mutable=["bases"])
    apply = functools.partial(modules[1].apply, train=True, mutable=["bases"])
    four, updates = jax.pmap(lambda x: apply(variables, x), axis_name="batch")(
        x.reshape(4, 2, 3, 4, 6)
    )
    np.testing.assert_allclose(four.reshape(one.shape), one, atol=1e-5)
    np.testing.assert_allclose(
        updates["bases"]["bases"],
        np.broadcast_to(changed["bases"]["bases"], (4, 1, 6, 4)),
        atol=1e-6,
    )
    moved = (changed["bases"]["bases"] - 0.9 * variables["bases"]["bases"]) / 0.1
    np.testing.assert_allclose(jnp.linalg.norm(moved, axis=1), np.ones((1, 4)), rtol=1e-5)


@pytest.mark.parametrize(
    "name, still, decayed",
    [
        ("emanet_r50-d8_512x1024_80k_cityscapes", ("ema_mid_conv",), ("ema_in_conv",)),
        ("dnl_r50-d8_769x769_80k_cityscapes", ("theta", "phi"), ("g",)),
        ("dnl_r50-d8_769x769_40k_cityscapes", (), ("theta", "phi", "g")),
    ],
)
def test_published_recipes_spare_parameters_from_weight_decay(name, still, decayed):
    params = {"decode_head": {key: {"conv": {"kernel": jnp.ones(2)}} for key in (*still, *decayed)}}
    config = get_experiment(name)
    optimizer, _ = make_optimizer(
        from_dict(OptimizerConfig, config.optimizer),
        from_dict(ScheduleConfig, config.schedule),
        config.steps,
    )
    updates, _ = optimizer.update(
        jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params
    )
    moved = {
        key: bool(leaf["conv"]["kernel"].any()) for key, leaf in updates["decode_head"].items()
    }
    assert moved == dict.fromkeys(still, False) | dict.fromkeys(decayed, True)
