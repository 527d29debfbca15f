"""The non-local network's head (arXiv:1711.07971)."""

import jax
from flax import linen as nn

from jaxseg.models.attention import (
    attend,
    conv_block_conv,
    flatten_positions,
    input_projection,
    output_projection,
)
from jaxseg.models.layers import Layers


class NonLocalBlock(nn.Module):
    """x plus, at every position, a mean over all positions, weighted by embedded similarity: [B, h, w, C] -> [B, h, w, C]."""

    layer: Layers
    reduction: int = 2

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        inner = max(x.shape[-1] // self.reduction, 1)
        query, key, value = (
            flatten_positions(input_projection(self.layer, x, inner, name))
            for name in ("theta", "phi", "g")
        )
        context = attend(query, key, value, scale=inner**-0.5)
        return x + output_projection(
            self.layer, context.reshape(*x.shape[:3], inner), x.shape[-1], "conv_out", train=train
        )


class NonLocalHead(nn.Module):
    """Every position sees every other: one embedded-Gaussian non-local block between two convolutions.

    Features [B, h, w, C] to class scores [B, h, w, K]; holds a float32 [B, h w, h w] matrix of weights.
    """

    num_classes: int
    channels: int
    layer: Layers
    in_index: int = -1
    reduction: int = 2

    @nn.compact
    def __call__(self, features, previous=None, *, train: bool) -> tuple[jax.Array, dict]:
        block = NonLocalBlock(self.layer, self.reduction, name="nl_block")
        x = features[self.in_index]
        return conv_block_conv(
            self.layer,
            x,
            lambda y: block(y, train=train),
            self.channels,
            self.num_classes,
            train=train,
        ), {}
