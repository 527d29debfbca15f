"""The non-local network's head (arXiv:1711.07971)."""

import functools

import jax
from flax import linen as nn

from jaxseg.models.attention import (
    attend,
    conv_block_conv,
    flatten_positions,
    input_projection,
    output_projection,
)
from jaxseg.models.layers import Features, HeadOutput, Layers


class NonLocalBlock(nn.Module):
    """Attention from every position to all positions by embedded similarity, added to the input.

    Attributes:
        layer: The model's settings.
        reduction: Factor by which queries, keys and values are narrower than the input.
    """

    layer: Layers
    reduction: int = 2

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map x [B, h, w, C] to the same shape."""
        inner = max(x.shape[-1] // self.reduction, 1)
        query, key, value = (
            flatten_positions(input_projection(self.layer, x, inner, name))
            for name in ("theta", "phi", "g")
        )
        context = attend(query, key, value, scale=inner**-0.5).reshape(*x.shape[:3], inner)
        return x + output_projection(self.layer, context, x.shape[-1], "conv_out", train=train)


class NonLocalHead(nn.Module):
    """One embedded-Gaussian non-local block between two convolutions.

    The attention weights are a float32 matrix [B, h w, h w].

    Attributes:
        num_classes: Number of classes K.
        channels: Channels of the convolutions.
        layer: The model's settings.
        in_index: The feature map to read.
        reduction: Factor by which queries, keys and values are narrower than the features.
    """

    num_classes: int
    channels: int
    layer: Layers
    in_index: int = -1
    reduction: int = 2

    @nn.compact
    def __call__(
        self, features: Features, previous: jax.Array | None = None, *, train: bool
    ) -> HeadOutput:
        """Map features [B, h, w, C] to class scores [B, h, w, K]."""
        block = NonLocalBlock(self.layer, self.reduction, name="nl_block")
        scores = conv_block_conv(
            self.layer,
            features[self.in_index],
            functools.partial(block, train=train),
            self.channels,
            self.num_classes,
            train=train,
        )
        return scores, {}
