"""DeepLab's heads: atrous spatial pyramid pooling of V3 (arXiv:1706.05587) and V3+ (1802.02611)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseg.models.layers import Features, HeadOutput, Layers
from jaxseg.models.pooling import adaptive_avg_pool


class ASPPHead(nn.Module):
    """Context from parallel dilated convolutions and a global pool.

    V3+ adds depthwise-separable convolutions and a decoder that reads a finer map.

    Attributes:
        num_classes: Number of classes K.
        channels: Channels of every branch.
        layer: The model's settings.
        in_index: The feature map to read.
        dilations: Dilations of the branches; 1 means a 1x1 convolution.
        separable: Whether convolutions are depthwise-separable (V3+).
        low_level_index: The fine map that the decoder reads (V3+); None for no decoder.
        low_level_channels: Channels to which the decoder projects the fine map.
    """

    num_classes: int
    channels: int
    layer: Layers
    in_index: int = -1
    dilations: Sequence[int] = (1, 6, 12, 18)
    separable: bool = False
    low_level_index: int | None = None
    low_level_channels: int = 48

    @nn.compact
    def __call__(
        self, features: Features, previous: jax.Array | None = None, *, train: bool
    ) -> HeadOutput:
        """Map features to class scores [B, h, w, K] at the finest resolution it reads."""
        layer = self.layer
        x = features[self.in_index]
        branches = [self._global_pool(x, train)]
        for i, dilation in enumerate(self.dilations):
            make = layer.separable_conv if self.separable and dilation > 1 else layer.conv_norm_act
            kernel_size = 1 if dilation == 1 else 3
            conv = make(self.channels, kernel_size, dilation=dilation, name=f"aspp_modules.{i}")
            branches.append(conv(x, train=train))
        x = jnp.concatenate(branches, axis=-1)
        x = layer.conv_norm_act(self.channels, 3, name="bottleneck")(x, train=train)
        if self.low_level_index is not None:
            conv = layer.conv_norm_act(self.low_level_channels, 1, name="c1_bottleneck")
            fine = conv(features[self.low_level_index], train=train)
            x = jnp.concatenate([layer.resize(x, fine.shape[1:3]), fine], axis=-1)
        if self.separable:
            x = layer.separable_conv(self.channels, 3, name="sep_bottleneck.0")(x, train=train)
            x = layer.separable_conv(self.channels, 3, name="sep_bottleneck.1")(x, train=train)
        return layer.classify(x, self.num_classes, train=train), {}

    def _global_pool(self, x: jax.Array, train: bool) -> jax.Array:
        conv = self.layer.conv_norm_act(self.channels, 1, name="image_pool.1")
        return self.layer.resize(conv(adaptive_avg_pool(x, 1), train=train), x.shape[1:3])
