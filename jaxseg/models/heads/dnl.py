"""The disentangled non-local head (arXiv:2006.06668)."""

import jax
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
from jaxseg.models.layers import Layers


class DisentangledBlock(nn.Module):
    """x plus two means over all positions, one by whitened similarity, one by a map of its own: [B, h, w, C] -> [B, h, w, C]."""

    layer: Layers
    reduction: int = 2
    temperature: float = 0.05

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        inner = max(x.shape[-1] // self.reduction, 1)
        query, key, value = (
            flatten_positions(input_projection(self.layer, x, inner, name))
            for name in ("theta", "phi", "g")
        )
        query, key = query - query.mean(1, keepdims=True), key - key.mean(1, keepdims=True)
        pairwise = attend(query, key, value, scale=inner**-0.5 / self.temperature)
        unary = flatten_positions(project(self.layer, x, 1, "conv_mask"))
        unary = jax.nn.softmax(unary.astype("float32"), axis=1).astype(value.dtype)
        context = pairwise + einsum_f32("bno,bnc->boc", unary, value).astype(value.dtype)
        return x + output_projection(
            self.layer, context.reshape(*x.shape[:3], inner), x.shape[-1], "conv_out", train=train
        )


class DNLHead(nn.Module):
    """Non-local attention split in two: what differs between a pair of positions, and what makes a position salient to all.

    Features [B, h, w, C] to class scores [B, h, w, K]; holds a float32 [B, h w, h w] matrix of weights.
    """

    num_classes: int
    channels: int
    layer: Layers
    in_index: int = -1
    reduction: int = 2
    temperature: float = 0.05

    @nn.compact
    def __call__(self, features, previous=None, *, train: bool) -> tuple[jax.Array, dict]:
        block = DisentangledBlock(self.layer, self.reduction, self.temperature, name="dnl_block")
        x = features[self.in_index]
        return conv_block_conv(
            self.layer,
            x,
            lambda y: block(y, train=train),
            self.channels,
            self.num_classes,
            train=train,
        ), {}
