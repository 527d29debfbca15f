"""Building blocks shared by the attention heads.

Attention weights are float32 in every compute dtype, and products of float32 operands use full
precision (no TF32): scores grow with channels and positions, and softmax turns their absolute error
into a relative one.
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
    """Flatten a map [B, h, w, C] to [B, h w, C]."""
    return x.reshape(x.shape[0], -1, x.shape[-1])


def einsum_f32(equation: str, *operands: jax.Array) -> jax.Array:
    """Einsum with a float32 result; float32 operands are multiplied in full precision."""
    return jnp.einsum(
        equation, *operands, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32
    )


def attend(query: jax.Array, key: jax.Array, value: jax.Array, scale: float = 1.0) -> jax.Array:
    """Average values with the weights softmax(scale * query key).

    Args:
        query: Queries [B, N, D].
        key: Keys [B, M, D].
        value: Values [B, M, C].
        scale: Factor of the scores.

    Returns:
        Averages [B, N, C] of the values' dtype.
    """
    weights = jax.nn.softmax(einsum_f32("bnd,bmd->bnm", query, key) * scale, axis=-1)
    return jnp.einsum("bnm,bmc->bnc", weights.astype(value.dtype), value)


def project(
    layer: Layers, x: jax.Array, features: int, name: str, kernel_init: Initializer = TORCH
) -> jax.Array:
    """Apply a 1x1 convolution with bias and PyTorch's initialisation, without norm or activation.

    Args:
        layer: The model's settings.
        x: Features [B, h, w, C].
        features: Channels of the result.
        name: Name of the convolution.
        kernel_init: Initialiser of its kernel.

    Returns:
        Features [B, h, w, features].
    """
    bias_init = Initializer("uniform", x.shape[-1] ** -0.5)
    conv = layer.conv(
        features, 1, use_bias=True, kernel_init=kernel_init, bias_init=bias_init, name=name
    )
    return conv(x)


def input_projection(layer: Layers, x: jax.Array, features: int, name: str) -> jax.Array:
    """Apply the non-local block's 1x1 convolution with bias and small initial weights.

    Args:
        layer: The model's settings.
        x: Features [B, h, w, C].
        features: Channels of the result.
        name: Name of the module, whose child `conv` is the convolution.

    Returns:
        Features [B, h, w, features].
    """
    conv = layer.conv_norm_act(
        features, 1, norm=False, activation="identity", kernel_init=SMALL, name=name
    )
    return conv(x, train=False)


def output_projection(
    layer: Layers, x: jax.Array, features: int, name: str, *, train: bool
) -> jax.Array:
    """Apply the non-local block's last 1x1 convolution and a norm whose scale starts at 0.

    The residual block therefore starts as the identity.

    Args:
        layer: The model's settings.
        x: Features [B, h, w, C].
        features: Channels of the result.
        name: Name of the module.
        train: Whether to train.

    Returns:
        Features [B, h, w, features].
    """
    conv = functools.partial(layer.conv, features, 1)
    norm = functools.partial(layer.norm, scale_init=ZEROS)
    return ConvNormAct(conv, norm, "identity", name=name)(x, train=train)


class LearnedScale(nn.Module):
    """Multiplies by one learned number that starts at 0."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale x."""
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
    """Apply an FCN head with an attention block between its two 3x3 convolutions.

    Args:
        layer: The model's settings.
        x: Features [B, h, w, C].
        block: Maps [B, h, w, channels] to the same shape.
        channels: Channels of the convolutions.
        num_classes: Number of classes K.
        train: Whether to train.

    Returns:
        Class scores [B, h, w, K], float32.
    """
    y = layer.conv_norm_act(channels, 3, name="convs.0")(x, train=train)
    y = layer.conv_norm_act(channels, 3, name="convs.1")(block(y), train=train)
    y = jnp.concatenate([x.astype(y.dtype), y], axis=-1)
    y = layer.conv_norm_act(channels, 3, name="conv_cat")(y, train=train)
    return layer.classify(y, num_classes, train=train)
