"""Feature pyramid network (arXiv:1612.03144)."""

from collections.abc import Sequence

import jax
from flax import linen as nn

from jaxseg.models.initializers import XAVIER
from jaxseg.models.layers import Layers
from jaxseg.ops import resize_nearest


class FPN(nn.Module):
    """Coarse maps are brought up (nearest) and added to finer ones, so that every map knows what the coarsest does.

    Maps [B, h_i, w_i, C_i], finest first, to maps [B, h_i, w_i, channels]. No norm, no activation.
    """

    layer: Layers
    channels: int = 256

    @nn.compact
    def __call__(self, features: Sequence[jax.Array], *, train: bool) -> list[jax.Array]:
        def conv(kernel_size, name):
            return self.layer.conv(
                self.channels, kernel_size, use_bias=True, kernel_init=XAVIER, name=name
            )

        maps = [conv(1, f"lateral_convs.{i}.conv")(x) for i, x in enumerate(features)]
        for i in reversed(range(len(maps) - 1)):
            maps[i] += resize_nearest(maps[i + 1], maps[i].shape[1:3])
        return [conv(3, f"fpn_convs.{i}.conv")(x) for i, x in enumerate(maps)]
