"""LR-ASPP, MobileNetV3's segmentation head (arXiv:1905.02244)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxseg.errors import ConfigError
from jaxseg.models.layers import Features, HeadOutput, Layers
from jaxseg.models.pooling import adaptive_avg_pool


def window_averages(x: jax.Array, window: int, stride: Sequence[int]) -> jax.Array:
    """Average the windows that are inside a map, as two matrix products since windows are large.

    Args:
        x: Features [B, H, W, C].
        window: Height and width of a window in pixels.
        stride: (vertical, horizontal) distance between windows in pixels.

    Returns:
        Averages [B, H', W', C].
    """
    for axis, step in zip((1, 2), stride):
        starts = np.arange(0, x.shape[axis] - window + 1, step)[:, None]
        position = np.arange(x.shape[axis])[None]
        matrix = ((position >= starts) & (position < starts + window)) / window
        precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
        averages = jnp.tensordot(matrix.astype(x.dtype), x, axes=(1, axis), precision=precision)
        x = jnp.moveaxis(averages, 0, axis)
    return x


class LRASPPHead(nn.Module):
    """Gates the coarsest map with averages of large windows, then adds detail from finer maps.

    Attributes:
        num_classes: Number of classes K.
        channels: Channels of the convolutions.
        layer: The model's settings.
        in_index: The feature maps to read, finest first.
        branch_channels: Channels to which the finer maps are projected.
        pool_size: Height and width of a window in pixels of the coarsest map; 49 at stride 8 needs
            images of 385 pixels.
        pool_stride: (vertical, horizontal) distance between windows.
        small_input: How to treat a map smaller than a window: 'error' raises a ConfigError when the
            model is traced, 'global' averages the whole map.
    """

    num_classes: int
    channels: int
    layer: Layers
    in_index: Sequence[int] = (0, 1, 2)
    branch_channels: Sequence[int] = (32, 64)
    pool_size: int = 49
    pool_stride: Sequence[int] = (16, 20)
    small_input: str = "error"

    @nn.compact
    def __call__(
        self, features: Features, previous: jax.Array | None = None, *, train: bool
    ) -> HeadOutput:
        """Map features [B, h_i, w_i, C_i] to class scores [B, h_0, w_0, K]."""
        layer = self.layer
        *fine, x = [features[i] for i in self.in_index]
        weigh = layer.conv_norm_act(
            self.channels, 1, norm=False, use_bias=False, activation="sigmoid", name="image_pool.1"
        )
        gate = layer.resize(weigh(self._pool(x), train=train), x.shape[1:3])
        x = layer.conv_norm_act(self.channels, 1, name="aspp_conv")(x, train=train) * gate
        x = layer.conv(self.channels, 1, use_bias=True, name="conv_up_input")(x)
        for i in reversed(range(len(fine))):
            slices = layer.conv(self.branch_channels[i], 1, name=f"convs.conv{i}")(fine[i])
            x = jnp.concatenate([layer.resize(x, fine[i].shape[1:3]), slices], axis=-1)
            x = layer.conv_norm_act(self.channels, 1, name=f"conv_ups.conv_up{i}")(x, train=train)
        return layer.classify(x, self.num_classes, train=train), {}

    def _pool(self, x: jax.Array) -> jax.Array:
        """Averages of windows of x, or of a small map as a whole if `small_input` allows it."""
        if self.small_input not in ("error", "global"):
            raise ConfigError(
                f"small_input of LR-ASPP is '{self.small_input}'",
                field="small_input",
                hint="'error' or 'global'",
            )
        height, width = x.shape[1:3]
        if min(height, width) >= self.pool_size:
            return window_averages(x, self.pool_size, self.pool_stride)
        if self.small_input == "error" and not self.is_initializing():
            raise ConfigError(
                f"LR-ASPP averages windows of {self.pool_size}x{self.pool_size} pixels, but its "
                f"feature map has {height}x{width}",
                field="small_input",
                hint="use larger images (from 385 pixels at stride 8), or the head's argument "
                "small_input='global', which averages the whole map",
            )
        return adaptive_avg_pool(x, 1)
