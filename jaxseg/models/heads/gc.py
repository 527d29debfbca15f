"""GCNet's head (arXiv:1904.11492)."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseg.models.attention import conv_block_conv, einsum_f32, flatten_positions, project
from jaxseg.models.initializers import ONES, ZEROS, Initializer
from jaxseg.models.layers import Layers


class ChannelNorm(nn.Module):
    """Layer norm over the channels of [B, 1, 1, C] (arXiv:1607.06450); parameters [C, 1, 1], as PyTorch keeps them."""

    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale, bias = (
            self.param(name, init, (x.shape[-1], 1, 1)).reshape(1, 1, 1, -1)
            for name, init in (("scale", ONES), ("bias", ZEROS))
        )
        centred = x.astype(jnp.float32)
        centred = centred - centred.mean(-1, keepdims=True)
        normalised = centred * jax.lax.rsqrt(
            jnp.square(centred).mean(-1, keepdims=True) + self.epsilon
        )
        return (normalised * scale + bias).astype(x.dtype)


class ContextBlock(nn.Module):
    """x plus one vector for all positions, made of an attention-weighted mean: [B, h, w, C] -> [B, h, w, C]."""

    layer: Layers
    ratio: float = 0.25

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        layer, channels = self.layer, x.shape[-1]
        # Kaiming for the fan in: with one output channel, the fan out would be 1.
        scores = project(
            layer, x, 1, "conv_mask", kernel_init=Initializer("normal", (2 / channels) ** 0.5)
        )
        weights = jax.nn.softmax(flatten_positions(scores).astype(jnp.float32), axis=1).astype(
            x.dtype
        )
        context = einsum_f32("bno,bnc->boc", weights, flatten_positions(x)).astype(x.dtype)[
            :, :, None, :
        ]
        context = project(layer, context, int(channels * self.ratio), "channel_add_conv.0")
        context = nn.relu(ChannelNorm(name="channel_add_conv.1")(context))
        return x + layer.conv(
            channels, 1, use_bias=True, kernel_init=ZEROS, name="channel_add_conv.3"
        )(context)


class GCHead(nn.Module):
    """Non-local attention whose weights are the same for every query, hence one global context vector, added everywhere.

    Features [B, h, w, C] to class scores [B, h, w, K].
    """

    num_classes: int
    channels: int
    layer: Layers
    in_index: int = -1
    ratio: float = 0.25

    @nn.compact
    def __call__(self, features, previous=None, *, train: bool) -> tuple[jax.Array, dict]:
        block = ContextBlock(self.layer, self.ratio, name="gc_block")
        return conv_block_conv(
            self.layer, features[self.in_index], block, self.channels, self.num_classes, train=train
        ), {}
