"""The disentangled non-local head (arXiv:2006.06668)."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseg.models.attention import (
    attend,
    conv_block_conv,
    einsum_f32,
    flatten_positions,
    input_projection,
    output_projection,
    project,
)
from jaxseg.models.layers import Features, HeadOutput, Layers


class DisentangledBlock(nn.Module):
    """Attention by whitened similarity, plus attention by a map that all queries share.

    Both are added to the input.

    Attributes:
        layer: The model's settings.
        reduction: Factor by which queries, keys and values are narrower than the input.
        temperature: Divisor of the similarities.
    """

    layer: Layers
    reduction: int = 2
    temperature: float = 0.05

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map x [B, h, w, C] to the same shape."""
        inner = max(x.shape[-1] // self.reduction, 1)
        query, key, value = (
            flatten_positions(input_projection(self.layer, x, inner, name))
            for name in ("theta", "phi", "g")
        )
        query = query - query.mean(1, keepdims=True)
        key = key - key.mean(1, keepdims=True)
        pairwise = attend(query, key, value, scale=inner**-0.5 / self.temperature)
        unary = flatten_positions(project(self.layer, x, 1, "conv_mask"))
        unary = jax.nn.softmax(unary.astype(jnp.float32), axis=1).astype(value.dtype)
        context = pairwise + einsum_f32("bno,bnc->boc", unary, value).astype(value.dtype)
        context = context.reshape(*x.shape[:3], inner)
        return x + output_projection(self.layer, context, x.shape[-1], "conv_out", train=train)


class DNLHead(nn.Module):
    """Non-local attention split into similarity of pairs and salience of single positions.

    The attention weights are a float32 matrix [B, h w, h w].

    Attributes:
        num_classes: Number of classes K.
        channels: Channels of the convolutions.
        layer: The model's settings.
        in_index: The feature map to read.
        reduction: Factor by which queries, keys and values are narrower than the features.
        temperature: Divisor of the similarities.
    """

    num_classes: int
    channels: int
    layer: Layers
    in_index: int = -1
    reduction: int = 2
    temperature: float = 0.05

    @nn.compact
    def __call__(
        self, features: Features, previous: jax.Array | None = None, *, train: bool
    ) -> HeadOutput:
        """Map features [B, h, w, C] to class scores [B, h, w, K]."""
        block = DisentangledBlock(self.layer, self.reduction, self.temperature, name="dnl_block")
        scores = conv_block_conv(
            self.layer,
            features[self.in_index],
            functools.partial(block, train=train),
            self.channels,
            self.num_classes,
            train=train,
        )
        return scores, {}
