"""DeepLab's heads: atrous spatial pyramid pooling, V3 (arXiv:1706.05587) and V3+ (arXiv:1802.02611)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseg.models.layers import Layers
from jaxseg.models.pooling import adaptive_avg_pool


class ASPPHead(nn.Module):
    """Context from parallel dilated convolutions and a global pool, joined; V3+ adds a decoder on a fine, early map.

    Features [B, h, w, C] to class scores [B, h, w, K]; with `low_level_index` (V3+: depthwise-separable throughout) at the
    resolution of that map, of which `low_level_channels` are kept.
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
    def __call__(self, features, previous=None, *, train: bool) -> tuple[jax.Array, dict]:
        layer, x = self.layer, features[self.in_index]
        pooled = layer.conv_norm_act(self.channels, 1, name="image_pool.1")(
            adaptive_avg_pool(x, 1), train=train
        )
        branches = [layer.resize(pooled, x.shape[1:3])]
        for i, dilation in enumerate(self.dilations):
            conv = layer.separable_conv if self.separable and dilation > 1 else layer.conv_norm_act
            kernel_size = 1 if dilation == 1 else 3
            branches.append(
                conv(self.channels, kernel_size, dilation=dilation, name=f"aspp_modules.{i}")(
                    x, train=train
                )
            )
        x = jnp.concatenate(branches, axis=-1)
        x = layer.conv_norm_act(self.channels, 3, name="bottleneck")(x, train=train)
        if self.low_level_index is not None:
            fine = features[self.low_level_index]
            fine = layer.conv_norm_act(self.low_level_channels, 1, name="c1_bottleneck")(
                fine, train=train
            )
            x = jnp.concatenate([layer.resize(x, fine.shape[1:3]), fine], axis=-1)
        if self.separable:
            x = layer.separable_conv(self.channels, 3, name="sep_bottleneck.0")(x, train=train)
            x = layer.separable_conv(self.channels, 3, name="sep_bottleneck.1")(x, train=train)
        return layer.classify(x, self.num_classes, train=train), {}
