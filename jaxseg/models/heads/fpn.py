"""Semantic FPN's head (arXiv:1901.02446)."""

import math
from collections.abc import Sequence

import jax
from flax import linen as nn

from jaxseg.models.layers import Features, HeadOutput, Layers


class FPNHead(nn.Module):
    """Brings each map of a feature pyramid to the finest resolution, then adds all of them.

    For each factor of 2 between the strides, a map is convolved and doubled in size.

    Attributes:
        num_classes: Number of classes K.
        channels: Channels of the convolutions.
        layer: The model's settings.
        in_index: The feature maps to read, finest first.
        feature_strides: Strides of these maps; `create_model` replaces () by the backbone's.
    """

    num_classes: int
    channels: int
    layer: Layers
    in_index: Sequence[int] = (0, 1, 2, 3)
    feature_strides: Sequence[int] = ()

    @nn.compact
    def __call__(
        self, features: Features, previous: jax.Array | None = None, *, train: bool
    ) -> HeadOutput:
        """Map features [B, h_i, w_i, C] to class scores [B, h_0, w_0, K]."""
        climbed = []
        for i, (index, stride) in enumerate(zip(self.in_index, self.feature_strides)):
            x = features[index]
            doublings = int(math.log2(stride / self.feature_strides[0]))
            for k in range(max(1, doublings)):
                conv = self.layer.conv_norm_act(self.channels, 3, name=f"scale_heads.{i}.{2 * k}")
                x = conv(x, train=train)
                if doublings:
                    x = self.layer.resize(x, [2 * n for n in x.shape[1:3]])
            climbed.append(x)
        total, *others = climbed
        for x in others:
            total = total + self.layer.resize(x, total.shape[1:3])
        return self.layer.classify(total, self.num_classes, train=train), {}
