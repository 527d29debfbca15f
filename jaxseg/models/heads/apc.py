"""APCNet's head (He et al., CVPR 2019: Adaptive Pyramid Context Network)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseg.models.attention import flatten_positions, project
from jaxseg.models.layers import Features, HeadOutput, Layers
from jaxseg.models.pooling import adaptive_avg_pool


class AdaptiveContext(nn.Module):
    """Context of one scale: every position mixes the cells of a coarse grid.

    A cell's weight is a sigmoid of the position's features and the image's mean, so cells do not
    compete.

    Attributes:
        layer: The model's settings.
        channels: Channels of the result.
        scale: Height and width of the grid.
    """

    layer: Layers
    channels: int
    scale: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map x [B, h, w, C] to [B, h, w, channels]."""

        def conv(name: str, y: jax.Array) -> jax.Array:
            return self.layer.conv_norm_act(self.channels, 1, name=name)(y, train=train)

        cells = flatten_positions(conv("pooled_redu_conv", adaptive_avg_pool(x, self.scale)))
        x = conv("input_redu_conv", x)
        mean = conv("global_info", adaptive_avg_pool(x, 1))
        scores = project(self.layer, x + mean, self.scale**2, "gla")
        weights = jax.nn.sigmoid(scores.astype(jnp.float32)).astype(x.dtype)
        context = conv("residual_conv", jnp.einsum("bhwm,bmc->bhwc", weights, cells))
        return conv("fusion_conv", nn.relu(context + x))


class APCHead(nn.Module):
    """Pyramid pooling in which every position has its own weights, instead of bilinear resizing.

    Attributes:
        num_classes: Number of classes K.
        channels: Channels of the convolutions.
        layer: The model's settings.
        in_index: The feature map to read.
        pool_scales: Heights and widths of the square pooling grids.
    """

    num_classes: int
    channels: int
    layer: Layers
    in_index: int = -1
    pool_scales: Sequence[int] = (1, 2, 3, 6)

    @nn.compact
    def __call__(
        self, features: Features, previous: jax.Array | None = None, *, train: bool
    ) -> HeadOutput:
        """Map features [B, h, w, C] to class scores [B, h, w, K]."""
        x = features[self.in_index].astype(self.layer.dtype)
        contexts = []
        for i, scale in enumerate(self.pool_scales):
            context = AdaptiveContext(self.layer, self.channels, scale, name=f"acm_modules.{i}")
            contexts.append(context(x, train=train))
        x = jnp.concatenate([x, *contexts], axis=-1)
        x = self.layer.conv_norm_act(self.channels, 3, name="bottleneck")(x, train=train)
        return self.layer.classify(x, self.num_classes, train=train), {}
