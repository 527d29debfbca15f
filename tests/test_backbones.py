"""Every backbone keeps to the channels and reductions that it declares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.models import BACKBONES, init_variables
from jaxseg.models.layers import Layers

TINY = {
    "resnet": [
        dict(depth=18, stem="v1", base_channels=4),
        dict(
            depth=50, base_channels=4, stem_channels=8, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4)
        ),
        dict(
            depth=50,
            stem="v1d",
            base_channels=4,
            stem_channels=8,
            strides=(1, 2, 2, 1),
            dilations=(1, 1, 1, 2),
            multi_grid=(1, 2, 4),
        ),
    ],
    "resnest": [
        dict(depth=50, base_channels=8, stem_channels=8),
        dict(
            depth=50,
            base_channels=8,
            stem_channels=8,
            strides=(1, 2, 1, 1),
            dilations=(1, 1, 2, 4),
            avg_down_stride=False,
            radix=1,
        ),
    ],
    "hrnet": [
        dict(base_channels=4, stem_channels=4, modules=(1, 1, 1), blocks=1),
        dict(base_channels=4, stem_channels=8, modules=(1, 3, 2), blocks=2),
    ],
    "mobilenet_v2": [
        dict(widen_factor=0.25),
        dict(widen_factor=0.5, strides=(1, 2, 2, 2, 1, 2, 1), dilations=(1,) * 7),
    ],
    "mobilenet_v3": [
        dict(arch="large", widen_factor=0.25),
        dict(arch="small", widen_factor=0.5),
        dict(arch="large"),
        dict(arch="small"),
    ],
    "fast_scnn": [dict()],
    "cgnet": [dict(), dict(widths=(8, 16, 32), blocks=(1, 2))],
}
CASES = [(name, fields) for name, cases in TINY.items() for fields in cases]


def test_every_backbone_is_tested():
    assert set(TINY) == set(BACKBONES)


@pytest.mark.parametrize("name, fields", CASES)
def test_outputs_have_the_declared_channels_and_reductions(name, fields):
    size = (65, 97)  # odd all the way down, where a wrong padding shows
    backbone = BACKBONES[name](layer=Layers(), **fields)
    images = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    outputs, _ = jax.eval_shape(
        lambda x: backbone.init_with_output(jax.random.key(0), x, train=False), images
    )
    assert tuple(x.shape[-1] for x in outputs) == tuple(backbone.channels)
    assert [x.shape[1:3] for x in outputs] == [
        tuple(-(-n // r) for n in size) for r in backbone.reductions
    ]
    assert len(backbone.channels) == len(backbone.reductions)


@pytest.mark.parametrize("name", TINY)
def test_training_is_finite_updates_every_statistic_and_reaches_every_parameter(name):
    backbone = BACKBONES[name](layer=Layers(), **TINY[name][0])
    variables = init_variables(backbone, seed=0, image_shape=(1, 64, 64, 3))
    # Zero-initialised norms and slopes would hide what is behind them.
    variables["params"] = jax.tree.map(
        lambda p: np.where(p == 0, np.float32(0.1), p), variables["params"]
    )
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 64, 64, 3)), jnp.float32)

    @jax.jit
    def step(params):
        def loss(params):
            outputs, changed = backbone.apply(
                {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
            )
            return sum(jnp.square(x).mean() for x in outputs), changed

        return jax.value_and_grad(loss, has_aux=True)(params)

    (value, changed), gradients = step(variables["params"])
    assert np.isfinite(value)
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(gradient).all() and (np.abs(gradient).max() > 0), jax.tree_util.keystr(
            path
        )
    for path, (new, old) in jax.tree_util.tree_leaves_with_path(
        jax.tree.map(
            lambda a, b: (np.asarray(a), b), changed["batch_stats"], variables["batch_stats"]
        ),
        is_leaf=lambda x: isinstance(x, tuple),
    ):
        assert (new != old).any(), jax.tree_util.keystr(path)
