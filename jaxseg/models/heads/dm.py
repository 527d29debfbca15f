"""DMNet's head (He et al., ICCV 2019: Dynamic Multi-Scale Filters for Semantic Segmentation)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseg.models.activations import ACTIVATIONS
from jaxseg.models.attention import project
from jaxseg.models.layers import Layers
from jaxseg.models.pooling import adaptive_avg_pool


def filter_per_sample(x: jax.Array, filters: jax.Array) -> jax.Array:
    """Depthwise convolution of x [B, h, w, C] with one filter a sample and channel, [B, s, s, C]; zero padding keeps the size.

    A sum of shifted products, which XLA fuses; as a grouped convolution it would have B C groups of one channel.
    """
    height, width, size = *x.shape[1:3], filters.shape[1]
    before, after = size // 2, (size - 1) // 2
    padded = jnp.pad(x, ((0, 0), (before, after), (before, after), (0, 0)))
    shifts = [(i, j) for i in range(size) for j in range(size)]
    return sum(
        padded[:, i : i + height, j : j + width] * filters[:, i : i + 1, j : j + 1]
        for i, j in shifts
    )


class DynamicFilter(nn.Module):
    """Filters the reduced features with filters made from the features themselves, pooled: [B, h, w, C] -> [B, h, w, channels]."""

    layer: Layers
    channels: int
    size: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        filters = project(
            self.layer, adaptive_avg_pool(x, self.size), self.channels, "filter_gen_conv"
        )
        x = self.layer.conv_norm_act(self.channels, 1, name="input_redu_conv")(x, train=train)
        x = self.layer.norm(name="norm")(filter_per_sample(x, filters), train=train)
        return ACTIVATIONS[self.layer.activation](x)


class DMHead(nn.Module):
    """Context at several scales from filters that each image brings along, in place of fixed dilated ones.

    Features [B, h, w, C] to class scores [B, h, w, K].
    """

    num_classes: int
    channels: int
    layer: Layers
    in_index: int = -1
    filter_sizes: Sequence[int] = (1, 3, 5, 7)

    @nn.compact
    def __call__(self, features, previous=None, *, train: bool) -> tuple[jax.Array, dict]:
        x = features[self.in_index].astype(self.layer.dtype)
        contexts = [
            DynamicFilter(self.layer, self.channels, size, name=f"dcm_modules.{i}")(x, train=train)
            for i, size in enumerate(self.filter_sizes)
        ]
        x = jnp.concatenate([x, *contexts], axis=-1)
        x = self.layer.conv_norm_act(self.channels, 3, name="bottleneck")(x, train=train)
        return self.layer.classify(x, self.num_classes, train=train), {}
