"""PSPNet's head (arXiv:1612.01105)."""

from collections.abc import Sequence

import jax
from flax import linen as nn

from jaxseg.models.layers import Features, HeadOutput, Layers


class PSPHead(nn.Module):
    """Pyramid pooling: averages on several grids, concatenated with the features as context.

    Attributes:
        num_classes: Number of classes K.
        channels: Channels of each pool, and of the features before the classifier.
        layer: The model's settings.
        in_index: The feature map to read.
        pool_scales: Heights and widths of the square grids.
    """

    num_classes: int
    channels: int
    layer: Layers
    in_index: int = -1
    pool_scales: Sequence[int] = (1, 2, 3, 6)

    @nn.compact
    def __call__(
        self, features: Features, previous: jax.Array | None = None, *, train: bool
    ) -> HeadOutput:
        """Map features [B, h, w, C] to class scores [B, h, w, K]."""
        x = self.layer.pyramid_pool(
            features[self.in_index],
            self.channels,
            self.pool_scales,
            train=train,
            name="psp_modules",
        )
        x = self.layer.conv_norm_act(self.channels, 3, name="bottleneck")(x, train=train)
        return self.layer.classify(x, self.num_classes, train=train), {}
