"""UPerNet's head (arXiv:1807.10221)."""

from collections.abc import Sequence

import jax
from flax import linen as nn

from jaxseg.models.layers import Features, HeadOutput, Layers
from jaxseg.ops import resize_concat


class UPerHead(nn.Module):
    """Pyramid pooling on the coarsest map, then a feature pyramid whose levels are concatenated.

    Attributes:
        num_classes: Number of classes K.
        channels: Channels of every level.
        layer: The model's settings.
        in_index: The feature maps to read, finest first.
        pool_scales: Heights and widths of the square pooling grids.
    """

    num_classes: int
    channels: int
    layer: Layers
    in_index: Sequence[int] = (0, 1, 2, 3)
    pool_scales: Sequence[int] = (1, 2, 3, 6)

    @nn.compact
    def __call__(
        self, features: Features, previous: jax.Array | None = None, *, train: bool
    ) -> HeadOutput:
        """Map features [B, h_i, w_i, C_i] to class scores [B, h_0, w_0, K]."""
        layer = self.layer
        *fine, coarse = [features[i] for i in self.in_index]
        maps = [
            layer.conv_norm_act(self.channels, 1, name=f"lateral_convs.{i}")(x, train=train)
            for i, x in enumerate(fine)
        ]
        x = layer.pyramid_pool(
            coarse, self.channels, self.pool_scales, train=train, name="psp_modules"
        )
        maps.append(layer.conv_norm_act(self.channels, 3, name="bottleneck")(x, train=train))
        for i in reversed(range(len(fine))):
            maps[i] += layer.resize(maps[i + 1], maps[i].shape[1:3])
        for i in range(len(fine)):
            conv = layer.conv_norm_act(self.channels, 3, name=f"fpn_convs.{i}")
            maps[i] = conv(maps[i], train=train)
        x = resize_concat(maps, layer.align_corners)
        x = layer.conv_norm_act(self.channels, 3, name="fpn_bottleneck")(x, train=train)
        return layer.classify(x, self.num_classes, train=train), {}
