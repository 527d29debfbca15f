"""PSPNet's head (arXiv:1612.01105)."""

from collections.abc import Sequence

import jax
from flax import linen as nn

from jaxseg.models.layers import Layers


class PSPHead(nn.Module):
    """Pyramid pooling: context from average pools on several grids, joined to the features.

    Features [B, h, w, C] to class scores [B, h, w, K].
    """

    num_classes: int
    channels: int
    layer: Layers
    in_index: int = -1
    pool_scales: Sequence[int] = (1, 2, 3, 6)

    @nn.compact
    def __call__(self, features, previous=None, *, train: bool) -> tuple[jax.Array, dict]:
        x = self.layer.pyramid_pool(
            features[self.in_index],
            self.channels,
            self.pool_scales,
            train=train,
            name="psp_modules",
        )
        x = self.layer.conv_norm_act(self.channels, 3, name="bottleneck")(x, train=train)
        return self.layer.classify(x, self.num_classes, train=train), {}
