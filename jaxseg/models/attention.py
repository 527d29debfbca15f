"""What attention heads share: the weighted mean over positions, the projections around it, and where it stands in a head.

Weights are computed in float32 whatever the model's dtype, and in full float32 where that is the dtype (no TF32): scores grow
with channels and positions, and a softmax turns their absolute error into a relative one.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseg.models.initializers import TORCH, ZEROS, Initializer
from jaxseg.models.layers import ConvNormAct, Layers

SMALL = Initializer("normal", 0.01)


def flatten_positions(x: jax.Array) -> jax.Array:
    """[B, h, w, C] to [B, h w, C]."""
    return x.reshape(x.shape[0], -1, x.shape[-1])


def einsum_f32(equation: str, *operands: jax.Array) -> jax.Array:
    """Einsum with a float32 result; float32 operands are multiplied as such."""
    return jnp.einsum(
        equation, *operands, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32
    )


def attend(query: jax.Array, key: jax.Array, value: jax.Array, scale: float = 1.0) -> jax.Array:
    """Means of value [B, M, C] weighted by softmax(scale * query key): query [B, N, D], key [B, M, D] -> [B, N, C], value's dtype."""
    weights = jax.nn.softmax(einsum_f32("bnd,bmd->bnm", query, key) * scale, axis=-1)
    return jnp.einsum("bnm,bmc->bnc", weights.astype(value.dtype), value)


def project(
    layer: Layers, x: jax.Array, features: int, name: str, kernel_init: Initializer = TORCH
) -> jax.Array:
    """1x1 convolution with bias and nothing after it, initialised as PyTorch does: [B, h, w, C] -> [B, h, w, features]."""
    bias_init = Initializer("uniform", x.shape[-1] ** -0.5)
    return layer.conv(
        features, 1, use_bias=True, kernel_init=kernel_init, bias_init=bias_init, name=name
    )(x)


def input_projection(layer: Layers, x: jax.Array, features: int, name: str) -> jax.Array:
    """Non-local's 1x1 embedding with bias (a child `conv`), initialised small."""
    return layer.conv_norm_act(
        features, 1, norm=False, activation="identity", kernel_init=SMALL, name=name
    )(x, train=False)


def output_projection(
    layer: Layers, x: jax.Array, features: int, name: str, *, train: bool
) -> jax.Array:
    """Non-local's way back to `features` channels: 1x1 convolution and a norm that starts at 0, so that the block starts as identity."""
    norm = functools.partial(layer.norm, scale_init=ZEROS)
    return ConvNormAct(functools.partial(layer.conv, features, 1), norm, "identity", name=name)(
        x, train=train
    )


class LearnedScale(nn.Module):
    """x times one learned number that starts at 0."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return x * self.param("factor", ZEROS, ()).astype(x.dtype)


def conv_block_conv(
    layer: Layers,
    x: jax.Array,
    block: Callable[[jax.Array], jax.Array],
    channels: int,
    num_classes: int,
    *,
    train: bool,
) -> jax.Array:
    """An FCN head with `block` between its two 3x3 convolutions: features [B, h, w, C] to class scores [B, h, w, K]."""
    y = layer.conv_norm_act(channels, 3, name="convs.0")(x, train=train)
    y = layer.conv_norm_act(channels, 3, name="convs.1")(block(y), train=train)
    y = jnp.concatenate([x.astype(y.dtype), y], axis=-1)
    y = layer.conv_norm_act(channels, 3, name="conv_cat")(y, train=train)
    return layer.classify(y, num_classes, train=train)
