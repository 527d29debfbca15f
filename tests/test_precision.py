"""The policy and the loss scale: what float16 does on overflow and what the others leave alone."""

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from jaxseg import precision


def make_policy(name, scale=0.0):
    return precision.make_policy(ConfigDict({"precision": name, "loss_scale": scale}))


def test_only_float16_scales_the_loss():
    for name, dtype in (("float32", jnp.float32), ("bfloat16", jnp.bfloat16)):
        policy = make_policy(name, 512.0)
        assert policy.dtype == dtype and not policy.scaled
        assert precision.initial_scale(policy).scale == 1.0
    assert precision.initial_scale(make_policy("float16", 512.0)).scale == 512.0
    assert precision.initial_scale(make_policy("float16")).scale == precision.INITIAL_SCALE


def test_dynamic_scale_halves_on_overflow_and_doubles_after_an_interval():
    policy = make_policy("float16")
    state = precision.initial_scale(policy)
    state = precision.adjust(state, jnp.bool_(False), policy)
    state = precision.adjust(state, jnp.bool_(False), policy)
    assert (
        state.scale == precision.INITIAL_SCALE / 4 and state.skipped == 2 and state.good_steps == 0
    )
    state = state.replace(good_steps=jnp.int32(precision.GROWTH_INTERVAL - 1))
    state = precision.adjust(state, jnp.bool_(True), policy)
    assert (
        state.scale == precision.INITIAL_SCALE / 2 and state.skipped == 0 and state.good_steps == 0
    )
    assert state.total_skipped == 2


def test_static_scale_stays_and_counts():
    policy = make_policy("float16", 512.0)
    state = precision.adjust(precision.initial_scale(policy), jnp.bool_(False), policy)
    assert state.scale == 512.0 and state.skipped == 1 and state.total_skipped == 1


def test_float32_asks_for_full_precision_unless_told_otherwise():
    dot = jax.make_jaxpr(lambda x: x @ x)

    def traced(name):
        with make_policy(name).matmul_precision():
            return str(jax.make_jaxpr(lambda x: x @ x)(jnp.ones((2, 2))))

    assert (
        "HIGHEST" in traced("float32")
        or "float32" in traced("float32").split("precision=")[1][:40].lower()
    )
    assert traced("bfloat16") == str(dot(jnp.ones((2, 2))))
    with jax.default_matmul_precision("tensorfloat32"):
        assert "HIGHEST" not in traced("float32")


@pytest.mark.parametrize(
    "options",
    [{"precision": "fp16", "loss_scale": 0.0}, {"precision": "float16", "loss_scale": -1.0}],
)
def test_wrong_settings_are_named(options):
    with pytest.raises(
        ValueError, match="config.precision is 'fp16'; known: float32|config.loss_scale is -1"
    ):
        precision.make_policy(ConfigDict(options))
