"""Feature pyramid network (arXiv:1612.03144)."""

from collections.abc import Sequence

import jax
from flax import linen as nn

from jaxseg.models.initializers import XAVIER
from jaxseg.models.layers import Conv, Layers
from jaxseg.ops import resize_nearest


class FPN(nn.Module):
    """Adds coarser maps, resized with nearest neighbours, to finer ones; no norm or activation.

    Attributes:
        layer: The model's settings.
        channels: Channels of every map of the result.
    """

    layer: Layers
    channels: int = 256

    @nn.compact
    def __call__(self, features: Sequence[jax.Array], *, train: bool) -> list[jax.Array]:
        """Map features [B, h_i, w_i, C_i], finest first, to [B, h_i, w_i, channels]."""
        maps = [self._conv(1, f"lateral_convs.{i}.conv")(x) for i, x in enumerate(features)]
        for i in reversed(range(len(maps) - 1)):
            maps[i] += resize_nearest(maps[i + 1], maps[i].shape[1:3])
        return [self._conv(3, f"fpn_convs.{i}.conv")(x) for i, x in enumerate(maps)]

    def _conv(self, kernel_size: int, name: str) -> Conv:
        return self.layer.conv(
            self.channels, kernel_size, use_bias=True, kernel_init=XAVIER, name=name
        )
