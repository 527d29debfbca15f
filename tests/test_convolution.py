"""Every lowering of a convolution, in every kind of differentiation, against XLA's own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from jaxseg.models import create_model, variable_shapes
from jaxseg.models.convolution import convolve

# (kernel shape, groups) of convolutions with a form for CPU, and (stride, dilation, padding, size).
SHAPES = [((3, 3, 1, 6), 6), ((1, 1, 6, 4), 1)]
GEOMETRIES = [(1, 1, 1, 17), (2, 1, 1, 18), (2, 1, 1, 17), (1, 2, 2, 15), (3, 1, 0, 17)]


def _random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def _plain(x, kernel, stride, padding, dilation, groups):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        stride,
        padding,
        rhs_dilation=dilation,
        feature_group_count=groups,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _case(kernel_shape, groups, stride=1, dilation=1, padding=1, size=9, batch=2):
    """Ours and XLA's convolution of one geometry, an image and a kernel."""
    padding = 0 if kernel_shape[0] == 1 else padding
    arguments = dict(
        stride=(stride,) * 2,
        padding=((padding, padding),) * 2,
        dilation=(dilation,) * 2,
        groups=groups,
    )
    ours, plain = (functools.partial(f, **arguments) for f in (convolve, _plain))
    return ours, plain, _random(batch, size, size + 1, 6), _random(*kernel_shape, seed=1)


def _assert_close(a, b, atol=2e-4):
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(left, right, atol=atol)


def _loss(f):
    return lambda x, kernel: jnp.sin(f(x, kernel)).sum()


@pytest.mark.parametrize("stride, dilation, padding, size", GEOMETRIES)
@pytest.mark.parametrize("kernel_shape, groups", SHAPES)
def test_values_and_both_gradients(stride, dilation, padding, size, kernel_shape, groups):
    ours, plain, x, kernel = _case(kernel_shape, groups, stride, dilation, padding, size)
    value, vjp = jax.vjp(ours, x, kernel)
    expected, expected_vjp = jax.vjp(plain, x, kernel)
    _assert_close(value, expected, atol=1e-5)
    gradient = _random(*expected.shape, seed=2)
    _assert_close(vjp(gradient), expected_vjp(gradient))


def _jvp(f, x, kernel):
    return jax.jvp(f, (x, kernel), (jnp.cos(x), jnp.cos(kernel)))


def _linearize(f, x, kernel):
    return jax.linearize(f, x, kernel)[1](jnp.cos(x), jnp.cos(kernel))


def _hessian_vector(f, x, kernel):
    gradient = jax.grad(_loss(f), (0, 1))
    return jax.jvp(gradient, (x, kernel), (jnp.cos(x), jnp.cos(kernel)))[1]


def _reverse_over_reverse(f, x, kernel):
    gradient = jax.grad(_loss(f), (0, 1))

    def square(x, kernel):
        return sum(jnp.square(g).sum() for g in gradient(x, kernel))

    return jax.grad(square, (0, 1))(x, kernel)


def _rematerialised(f, x, kernel):
    return jax.grad(jax.checkpoint(_loss(f)), (0, 1))(x, kernel)


@pytest.mark.parametrize("kernel_shape, groups", SHAPES)
@pytest.mark.parametrize(
    "mode", [_jvp, _linearize, _hessian_vector, _reverse_over_reverse, _rematerialised]
)
def test_every_kind_of_differentiation(mode, kernel_shape, groups):
    ours, plain, x, kernel = _case(kernel_shape, groups, stride=2)
    expected = mode(plain, x, kernel)
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    _assert_close(mode(ours, x, kernel), expected, atol=1e-5 * scale)


@pytest.mark.parametrize("axes", [(0, None), (2, None), (None, 0), (0, 0)])
@pytest.mark.parametrize("kernel_shape, groups", SHAPES)
def test_vmap_over_images_and_kernels(axes, kernel_shape, groups):
    ours, plain, x, kernel = _case(kernel_shape, groups)
    operands = [
        a if axis is None else jnp.stack([a, 2 * a, jnp.cos(a)], axis=axis)
        for a, axis in zip((x, kernel), axes, strict=True)
    ]
    for make in (lambda f: f, lambda f: jax.grad(_loss(f), (0, 1))):
        found, expected = (jax.vmap(make(f), axes)(*operands) for f in (ours, plain))
        _assert_close(found, expected)

    def total(f):
        return lambda x, kernel: jax.vmap(_loss(f), axes)(x, kernel).sum()

    _assert_close(*(jax.grad(total(f), (0, 1))(*operands) for f in (ours, plain)))


@pytest.mark.parametrize("kernel_shape, groups", SHAPES)
def test_pmap_and_shard_map_with_a_shared_kernel(kernel_shape, groups):
    ours, plain, x, kernel = _case(kernel_shape, groups, batch=4)
    gradient = jax.pmap(jax.grad(_loss(ours), (0, 1)), in_axes=(0, None))(x[:, None], kernel)
    expected = jax.grad(_loss(plain), (0, 1))(x, kernel)
    _assert_close((gradient[0][:, 0], gradient[1].sum(0)), expected)

    mesh = jax.make_mesh((4,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    split, shared = jax.sharding.PartitionSpec("batch"), jax.sharding.PartitionSpec()
    sharded = jax.shard_map(
        jax.grad(_loss(ours), (0, 1)),
        mesh=mesh,
        in_specs=(split, shared),
        out_specs=(split, shared),
    )
    _assert_close(jax.jit(sharded)(x, kernel), expected)


def test_low_precision_stays_low():
    for kernel_shape, groups in SHAPES:
        ours, _, x, kernel = _case(kernel_shape, groups)
        x, kernel = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
        loss = _loss(ours)
        gradients = jax.grad(lambda x, k, f=loss: f(x, k).astype(jnp.float32), (0, 1))(x, kernel)
        assert {a.dtype for a in (ours(x, kernel), *gradients)} == {jnp.dtype(jnp.bfloat16)}


@pytest.fixture(scope="module")
def fast_scnn():
    """Fast-SCNN's gradient step, as shapes."""
    model = create_model("fast_scnn", num_classes=3)
    variables = variable_shapes(model)
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)

    def gradient(params, state, images):
        def loss(params):
            logits, _ = model.apply({"params": params, **state}, images, train=False)
            return jnp.square(logits).sum()

        return jax.grad(loss)(params)

    state = {key: value for key, value in variables.items() if key != "params"}
    return jax.jit(gradient), (variables["params"], state, images)


def _grouped_convolutions(module):
    lines = [line for line in module.splitlines() if "stablehlo.convolution" in line]
    return sum(
        "feature_group_count = 1 " not in line or "batch_group_count = 1 " not in line
        for line in lines
    )


@pytest.mark.parametrize("platforms", [("tpu",), ("cuda",), ("cpu",), ("cpu", "cuda", "tpu")])
def test_an_export_carries_the_form_of_its_platform(fast_scnn, platforms):
    gradient, arguments = fast_scnn
    module = export.export(gradient, platforms=platforms)(*arguments).mlir_module()
    assert (_grouped_convolutions(module) > 0) == (platforms != ("cpu",))
    # The barriers belong to the form for CPU.
    assert ("optimization_barrier" in module) == ("cpu" in platforms)


def test_an_export_for_several_platforms_runs_here():
    ours, plain, x, kernel = _case((3, 3, 1, 6), 6)
    exported = export.export(jax.jit(ours), platforms=("cpu", "cuda", "tpu"))(x, kernel)
    np.testing.assert_allclose(exported.call(x, kernel), plain(x, kernel), atol=1e-5)
