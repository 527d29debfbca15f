"""APCNet's head (He et al., CVPR 2019: Adaptive Pyramid Context Network for Semantic Segmentation)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseg.models.attention import flatten_positions, project
from jaxseg.models.layers import Layers
from jaxseg.models.pooling import adaptive_avg_pool


class AdaptiveContext(nn.Module):
    """Context of one scale: every position mixes the cells of a coarse grid: [B, h, w, C] -> [B, h, w, channels].

    A cell's weight is a sigmoid of the position's features and the image's mean, so cells do not compete.
    """

    layer: Layers
    channels: int
    scale: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        def conv(name: str, y: jax.Array) -> jax.Array:
            return self.layer.conv_norm_act(self.channels, 1, name=name)(y, train=train)

        cells = flatten_positions(conv("pooled_redu_conv", adaptive_avg_pool(x, self.scale)))
        x = conv("input_redu_conv", x)
        scores = project(
            self.layer, x + conv("global_info", adaptive_avg_pool(x, 1)), self.scale**2, "gla"
        )
        weights = jax.nn.sigmoid(scores.astype(jnp.float32)).astype(x.dtype)
        context = conv("residual_conv", jnp.einsum("bhwm,bmc->bhwc", weights, cells))
        return conv("fusion_conv", nn.relu(context + x))


class APCHead(nn.Module):
    """Pyramid pooling with weights of its own at every position, in place of bilinear resizing.

    Features [B, h, w, C] to class scores [B, h, w, K].
    """

    num_classes: int
    channels: int
    layer: Layers
    in_index: int = -1
    pool_scales: Sequence[int] = (1, 2, 3, 6)

    @nn.compact
    def __call__(self, features, previous=None, *, train: bool) -> tuple[jax.Array, dict]:
        x = features[self.in_index].astype(self.layer.dtype)
        contexts = [
            AdaptiveContext(self.layer, self.channels, scale, name=f"acm_modules.{i}")(
                x, train=train
            )
            for i, scale in enumerate(self.pool_scales)
        ]
        x = jnp.concatenate([x, *contexts], axis=-1)
        x = self.layer.conv_norm_act(self.channels, 3, name="bottleneck")(x, train=train)
        return self.layer.classify(x, self.num_classes, train=train), {}
