"""Semantic FPN's head (arXiv:1901.02446)."""

import math
from collections.abc import Sequence

import jax
from flax import linen as nn

from jaxseg.models.layers import Layers


class FPNHead(nn.Module):
    """Each map of a feature pyramid climbs to the finest one's resolution, a convolution and a doubling at a time; then all are added.

    Maps [B, h_i, w_i, C] to class scores [B, h_0, w_0, K]; `feature_strides`, by default the backbone's, says how many
    doublings each needs.
    """

    num_classes: int
    channels: int
    layer: Layers
    in_index: Sequence[int] = (0, 1, 2, 3)
    feature_strides: Sequence[int] = ()  # create_model fills it in

    @nn.compact
    def __call__(self, features, previous=None, *, train: bool) -> tuple[jax.Array, dict]:
        total = None
        for i, (index, stride) in enumerate(zip(self.in_index, self.feature_strides)):
            x, doublings = features[index], int(math.log2(stride / self.feature_strides[0]))
            for k in range(max(1, doublings)):
                x = self.layer.conv_norm_act(self.channels, 3, name=f"scale_heads.{i}.{2 * k}")(
                    x, train=train
                )
                if doublings:
                    x = self.layer.resize(x, [2 * n for n in x.shape[1:3]])
            total = x if total is None else total + self.layer.resize(x, total.shape[1:3])
        return self.layer.classify(total, self.num_classes, train=train), {}
