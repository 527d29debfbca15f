"""FCN heads (arXiv:1411.4038): a few convolutions, then a classifier; also every method's auxiliary head."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseg.models.layers import Layers
from jaxseg.ops import resize_concat


class FCNHead(nn.Module):
    """Convolutions on one feature map, or on several joined at the finest resolution (HRNet: `in_index` a tuple).

    Features [B, h, w, C] to class scores [B, h, w, K]. `channels` 0: as many as its inputs have together (create_model
    fills it in). `concat_input` shows the classifier the features again;
    `separable` makes the convolutions depthwise-separable (Fast-SCNN, arXiv:1902.04502).
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
    def __call__(self, features, previous=None, *, train: bool) -> tuple[jax.Array, dict]:
        if isinstance(self.in_index, int):
            inputs = features[self.in_index]
        else:
            inputs = resize_concat([features[i] for i in self.in_index], self.layer.align_corners)
        x, conv = inputs, self.layer.conv_norm_act
        if self.separable:
            conv = functools.partial(self.layer.separable_conv, depthwise_activation="identity")
        for i in range(self.num_convs):
            x = conv(self.channels, self.kernel_size, dilation=self.dilation, name=f"convs.{i}")(
                x, train=train
            )
        if self.concat_input:
            x = jnp.concatenate([inputs.astype(x.dtype), x], axis=-1)
            x = conv(self.channels, self.kernel_size, name="conv_cat")(x, train=train)
        return self.layer.classify(x, self.num_classes, train=train), {}
