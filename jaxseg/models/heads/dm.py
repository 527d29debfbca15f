"""DMNet's head (He et al., ICCV 2019: Dynamic Multi-Scale Filters for Semantic Segmentation)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseg.models.activations import ACTIVATIONS
from jaxseg.models.attention import project
from jaxseg.models.layers import Features, HeadOutput, Layers
from jaxseg.models.pooling import adaptive_avg_pool


def filter_per_sample(x: jax.Array, filters: jax.Array) -> jax.Array:
    """Convolve depthwise with different filters for each sample; zero padding keeps the size.

    This is computed as a sum of shifted products, which XLA fuses; a grouped convolution would have
    B C groups of one channel.

    Args:
        x: Features [B, h, w, C].
        filters: Filters [B, s, s, C].

    Returns:
        Features [B, h, w, C].
    """
    height, width = x.shape[1:3]
    size = filters.shape[1]
    before, after = size // 2, (size - 1) // 2
    padded = jnp.pad(x, ((0, 0), (before, after), (before, after), (0, 0)))
    products = [
        padded[:, i : i + height, j : j + width] * filters[:, i : i + 1, j : j + 1]
        for i in range(size)
        for j in range(size)
    ]
    return sum(products[1:], products[0])


class DynamicFilter(nn.Module):
    """Convolves features with filters that are predicted from the pooled features.

    Attributes:
        layer: The model's settings.
        channels: Channels of the result.
        size: Height and width of the filters.
    """

    layer: Layers
    channels: int
    size: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map x [B, h, w, C] to [B, h, w, channels]."""
        pooled = adaptive_avg_pool(x, self.size)
        filters = project(self.layer, pooled, self.channels, "filter_gen_conv")
        x = self.layer.conv_norm_act(self.channels, 1, name="input_redu_conv")(x, train=train)
        x = self.layer.norm(name="norm")(filter_per_sample(x, filters), train=train)
        return ACTIVATIONS[self.layer.activation](x)


class DMHead(nn.Module):
    """Context at several scales from filters predicted for each image, instead of fixed ones.

    Attributes:
        num_classes: Number of classes K.
        channels: Channels of the convolutions.
        layer: The model's settings.
        in_index: The feature map to read.
        filter_sizes: Heights and widths of the square filters.
    """

    num_classes: int
    channels: int
    layer: Layers
    in_index: int = -1
    filter_sizes: Sequence[int] = (1, 3, 5, 7)

    @nn.compact
    def __call__(
        self, features: Features, previous: jax.Array | None = None, *, train: bool
    ) -> HeadOutput:
        """Map features [B, h, w, C] to class scores [B, h, w, K]."""
        x = features[self.in_index].astype(self.layer.dtype)
        contexts = []
        for i, size in enumerate(self.filter_sizes):
            context = DynamicFilter(self.layer, self.channels, size, name=f"dcm_modules.{i}")
            contexts.append(context(x, train=train))
        x = jnp.concatenate([x, *contexts], axis=-1)
        x = self.layer.conv_norm_act(self.channels, 3, name="bottleneck")(x, train=train)
        return self.layer.classify(x, self.num_classes, train=train), {}
