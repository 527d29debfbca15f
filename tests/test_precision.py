"""The policy and the loss scale: float16 handles overflow, other precisions do not scale."""

import jax
import jax.numpy as jnp
import pytest

from jaxseg import precision
from jaxseg.errors import ConfigError
from jaxseg.precision import make_policy


def test_only_float16_scales_the_loss():
    for name, dtype in (("float32", jnp.float32), ("bfloat16", jnp.bfloat16)):
        policy = make_policy(name, 512.0)
        assert policy.dtype == dtype and not policy.uses_loss_scaling
        assert precision.initial_scale(policy).scale == 1.0
    assert precision.initial_scale(make_policy("float16", 512.0)).scale == 512.0
    assert precision.initial_scale(make_policy("float16")).scale == precision.INITIAL_SCALE


def test_dynamic_scale_halves_on_overflow_and_doubles_after_an_interval():
    policy = make_policy("float16")
    state = precision.initial_scale(policy)
    state = precision.update_loss_scale(state, jnp.bool_(False), policy)
    state = precision.update_loss_scale(state, jnp.bool_(False), policy)
    assert (
        state.scale == precision.INITIAL_SCALE / 4 and state.skipped == 2 and state.good_steps == 0
    )
    state = state.replace(good_steps=jnp.int32(precision.GROWTH_INTERVAL - 1))
    state = precision.update_loss_scale(state, jnp.bool_(True), policy)
    assert (
        state.scale == precision.INITIAL_SCALE / 2 and state.skipped == 0 and state.good_steps == 0
    )
    assert state.total_skipped == 2


def test_static_scale_stays_and_counts():
    policy = make_policy("float16", 512.0)
    state = precision.update_loss_scale(precision.initial_scale(policy), jnp.bool_(False), policy)
    assert state.scale == 512.0 and state.skipped == 1 and state.total_skipped == 1


def test_float32_requests_full_precision_unless_jax_has_a_default():
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
    "name, scale, field", [("fp16", 0.0, "precision"), ("float16", -1.0, "loss_scale")]
)
def test_wrong_settings_are_named(name, scale, field):
    with pytest.raises(ConfigError) as error:
        make_policy(name, scale)
    assert error.value.field == field


def test_a_tree_without_leaves_is_finite():
    assert precision.all_finite({}) and not precision.all_finite({"a": jnp.float32(jnp.nan)})
