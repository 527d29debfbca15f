"""LR-ASPP, MobileNetV3's segmentation head (arXiv:1905.02244)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxseg.errors import ConfigError
from jaxseg.models.layers import Layers
from jaxseg.models.pooling import adaptive_avg_pool


def window_averages(x: jax.Array, window: int, stride: Sequence[int]) -> jax.Array:
    """Averages of windows that lie within x [B, H, W, C]; as two matrix products, as such windows are too large to slide."""
    for axis, step in zip((1, 2), stride):
        starts = np.arange(0, x.shape[axis] - window + 1, step)[:, None]
        position = np.arange(x.shape[axis])[None]
        matrix = ((position >= starts) & (position < starts + window)) / window
        precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
        x = jnp.moveaxis(
            jnp.tensordot(matrix.astype(x.dtype), x, axes=(1, axis), precision=precision), 0, axis
        )
    return x


class LRASPPHead(nn.Module):
    """The coarsest map, gated by averages of large windows of it, climbs to the finest past thin slices of the others.

    Maps [B, h_i, w_i, C_i], finest first, to class scores [B, h_0, w_0, K].

    The windows are 49 pixels of the coarsest map, so at stride 8 images need 385. small_input says what happens below that:
    'error' (a ConfigError when the model is traced) or 'global' (the average of the whole map instead).
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
    def __call__(self, features, previous=None, *, train: bool) -> tuple[jax.Array, dict]:
        layer, (*fine, x) = self.layer, [features[i] for i in self.in_index]
        gate = layer.conv_norm_act(
            self.channels, 1, norm=False, use_bias=False, activation="sigmoid", name="image_pool.1"
        )
        gate = layer.resize(gate(self.pool(x), train=train), x.shape[1:3])
        x = layer.conv_norm_act(self.channels, 1, name="aspp_conv")(x, train=train) * gate
        x = layer.conv(self.channels, 1, use_bias=True, name="conv_up_input")(x)
        for i in reversed(range(len(fine))):
            slices = layer.conv(self.branch_channels[i], 1, name=f"convs.conv{i}")(fine[i])
            x = jnp.concatenate([layer.resize(x, fine[i].shape[1:3]), slices], axis=-1)
            x = layer.conv_norm_act(self.channels, 1, name=f"conv_ups.conv_up{i}")(x, train=train)
        return layer.classify(x, self.num_classes, train=train), {}

    def pool(self, x: jax.Array) -> jax.Array:
        """Average windows of x, or all of it where it is smaller and `small_input` allows."""
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
