"""GCNet's head (arXiv:1904.11492)."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseg.models.attention import conv_block_conv, einsum_f32, flatten_positions, project
from jaxseg.models.initializers import ONES, ZEROS, Initializer
from jaxseg.models.layers import Features, HeadOutput, Layers


class ChannelNorm(nn.Module):
    """Layer norm over the channels of [B, 1, 1, C] (arXiv:1607.06450).

    Its parameters have PyTorch's shape [C, 1, 1].

    Attributes:
        epsilon: Added to the variance.
    """

    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalise x."""
        shape = (x.shape[-1], 1, 1)
        scale = self.param("scale", ONES, shape).reshape(1, 1, 1, -1)
        bias = self.param("bias", ZEROS, shape).reshape(1, 1, 1, -1)
        centred = x.astype(jnp.float32)
        centred = centred - centred.mean(-1, keepdims=True)
        variance = jnp.square(centred).mean(-1, keepdims=True)
        normalised = centred * jax.lax.rsqrt(variance + self.epsilon)
        return (normalised * scale + bias).astype(x.dtype)


class ContextBlock(nn.Module):
    """One vector for all positions, from an attention-weighted mean, added to the input.

    Attributes:
        layer: The model's settings.
        ratio: Channels of the hidden layer, as a share of the input's.
    """

    layer: Layers
    ratio: float = 0.25

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map x [B, h, w, C] to the same shape."""
        layer = self.layer
        channels = x.shape[-1]
        # Kaiming initialisation with the fan in: with one output channel, the fan out is 1.
        kaiming = Initializer("normal", (2 / channels) ** 0.5)
        scores = flatten_positions(project(layer, x, 1, "conv_mask", kernel_init=kaiming))
        weights = jax.nn.softmax(scores.astype(jnp.float32), axis=1).astype(x.dtype)
        context = einsum_f32("bno,bnc->boc", weights, flatten_positions(x)).astype(x.dtype)
        context = context[:, :, None, :]
        context = project(layer, context, int(channels * self.ratio), "channel_add_conv.0")
        context = nn.relu(ChannelNorm(name="channel_add_conv.1")(context))
        conv = layer.conv(channels, 1, use_bias=True, kernel_init=ZEROS, name="channel_add_conv.3")
        return x + conv(context)


class GCHead(nn.Module):
    """Non-local attention with the same weights for every query: one global context vector.

    Attributes:
        num_classes: Number of classes K.
        channels: Channels of the convolutions.
        layer: The model's settings.
        in_index: The feature map to read.
        ratio: Channels of the context's hidden layer, as a share of the input's.
    """

    num_classes: int
    channels: int
    layer: Layers
    in_index: int = -1
    ratio: float = 0.25

    @nn.compact
    def __call__(
        self, features: Features, previous: jax.Array | None = None, *, train: bool
    ) -> HeadOutput:
        """Map features [B, h, w, C] to class scores [B, h, w, K]."""
        block = ContextBlock(self.layer, self.ratio, name="gc_block")
        x = features[self.in_index]
        scores = conv_block_conv(self.layer, x, block, self.channels, self.num_classes, train=train)
        return scores, {}
