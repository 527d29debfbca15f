"""FCN heads (arXiv:1411.4038): a few convolutions, then a classifier; also every auxiliary head."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseg.models.layers import Features, HeadOutput, Layers
from jaxseg.ops import resize_concat


class FCNHead(nn.Module):
    """Convolutions on one feature map, or on several concatenated at the finest resolution.

    Attributes:
        num_classes: Number of classes K.
        channels: Channels of the convolutions; `create_model` replaces 0 by the channels of all
            maps together.
        layer: The model's settings.
        in_index: The feature map to read, or several (HRNet).
        num_convs: Number of convolutions.
        kernel_size: Height and width of their kernels.
        dilation: Their dilation.
        concat_input: Whether to concatenate the input features before the classifier.
        separable: Whether the convolutions are depthwise-separable (Fast-SCNN, arXiv:1902.04502).
    """

    num_classes: int
    channels: int
    layer: Layers
    in_index: int | Sequence[int] = -1
    num_convs: int = 2
    kernel_size: int = 3
    dilation: int = 1
    concat_input: bool = True
    separable: bool = False

    @nn.compact
    def __call__(
        self, features: Features, previous: jax.Array | None = None, *, train: bool
    ) -> HeadOutput:
        """Map features [B, h, w, C] to class scores [B, h, w, K]."""
        if isinstance(self.in_index, int):
            inputs = features[self.in_index]
        else:
            inputs = resize_concat([features[i] for i in self.in_index], self.layer.align_corners)
        x = inputs
        for i in range(self.num_convs):
            x = self._conv(f"convs.{i}", dilation=self.dilation)(x, train=train)
        if self.concat_input:
            x = jnp.concatenate([inputs.astype(x.dtype), x], axis=-1)
            x = self._conv("conv_cat")(x, train=train)
        return self.layer.classify(x, self.num_classes, train=train), {}

    def _conv(self, name: str, dilation: int = 1) -> nn.Module:
        if self.separable:
            return self.layer.separable_conv(
                self.channels,
                self.kernel_size,
                dilation=dilation,
                depthwise_activation="identity",
                name=name,
            )
        return self.layer.conv_norm_act(
            self.channels, self.kernel_size, dilation=dilation, name=name
        )
