"""MobileNetV3 (arXiv:1905.02244), large and small, dilated to an output stride of 8."""

import jax
from flax import linen as nn

from jaxseg.models.backbones.mobilenet_v2 import round_channels
from jaxseg.models.layers import Layers
from jaxseg.models.pooling import adaptive_avg_pool

# A row a block: kernel size, expanded channels, channels, squeeze and excite, activation, stride, dilation. Where the
# classifier halves the resolution beyond 1/8, these keep it and dilate.
BLOCKS = {
    "large": (
        (3, 16, 16, False, "relu", 1, 1), (3, 64, 24, False, "relu", 2, 1), (3, 72, 24, False, "relu", 1, 1),
        (5, 72, 40, True, "relu", 2, 1), (5, 120, 40, True, "relu", 1, 1), (5, 120, 40, True, "relu", 1, 1),
        (3, 240, 80, False, "hard_swish", 1, 2), (3, 200, 80, False, "hard_swish", 1, 2),
        (3, 184, 80, False, "hard_swish", 1, 2), (3, 184, 80, False, "hard_swish", 1, 2),
        (3, 480, 112, True, "hard_swish", 1, 2), (3, 672, 112, True, "hard_swish", 1, 2),
        (5, 672, 160, True, "hard_swish", 1, 4), (5, 960, 160, True, "hard_swish", 1, 4), (5, 960, 160, True, "hard_swish", 1, 4),
    ),
    "small": (
        (3, 16, 16, True, "relu", 2, 1), (3, 72, 24, False, "relu", 2, 1), (3, 88, 24, False, "relu", 1, 1),
        (5, 96, 40, True, "hard_swish", 1, 2), (5, 240, 40, True, "hard_swish", 1, 2), (5, 240, 40, True, "hard_swish", 1, 2),
        (5, 120, 48, True, "hard_swish", 1, 2), (5, 144, 48, True, "hard_swish", 1, 2),
        (5, 288, 96, True, "hard_swish", 1, 4), (5, 576, 96, True, "hard_swish", 1, 4), (5, 576, 96, True, "hard_swish", 1, 4),
    ),
}  # fmt: skip
LAST_CHANNELS = {"large": 960, "small": 576}
OUT_INDICES = {"large": (1, 3, 16), "small": (0, 1, 12)}


class SqueezeExcite(nn.Module):
    """Channels of x [B, H, W, C] scaled by what their global averages say (arXiv:1709.01507)."""

    layer: Layers

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        layer, channels = self.layer, x.shape[-1]
        y = adaptive_avg_pool(x, 1)
        y = layer.conv_norm_act(round_channels(channels // 4), 1, norm=False, name="conv1")(
            y, train=train
        )
        y = layer.conv_norm_act(channels, 1, norm=False, activation="hard_sigmoid", name="conv2")(
            y, train=train
        )
        return x * y


class InvertedResidual(nn.Module):
    """V2's block with squeeze and excite after the depthwise convolution, and its own `activation`.

    [B, H, W, C] -> [B, H / stride, W / stride, features]; `expanded` channels in between.
    """

    layer: Layers
    kernel_size: int
    expanded: int
    features: int
    excite: bool
    activation: str
    stride: int
    dilation: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        layer, y, act = self.layer, x, dict(activation=self.activation)
        if x.shape[-1] != self.expanded:
            y = layer.conv_norm_act(self.expanded, 1, **act, name="expand_conv")(y, train=train)
        spatial = dict(
            stride=self.stride,
            dilation=self.dilation,
            groups=self.expanded,
            padding="same" if self.stride > 1 else None,
        )
        y = layer.conv_norm_act(
            self.expanded, self.kernel_size, **spatial, **act, name="depthwise_conv"
        )(y, train=train)
        if self.excite:
            y = SqueezeExcite(layer, name="se")(y, train=train)
        y = layer.conv_norm_act(self.features, 1, activation="identity", name="linear_conv")(
            y, train=train
        )
        return x + y if self.stride == 1 and x.shape[-1] == self.features else y


class MobileNetV3(nn.Module):
    """Images [B, H, W, C] to three maps, finest first: 16, 24, 960 channels ('large') or 16, 16, 576 ('small').

    arch: 'large' or 'small'. Strided convolutions pad as TensorFlow does, more at the bottom and right.
    """

    layer: Layers
    arch: str = "large"
    widen_factor: float = 1.0

    def width(self, channels: int) -> int:
        """`channels` times the widening factor."""
        return channels if self.widen_factor == 1 else round_channels(channels * self.widen_factor)

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the three outputs."""
        table = (16, *(row[2] for row in BLOCKS[self.arch]), LAST_CHANNELS[self.arch])
        return tuple(self.width(table[i]) for i in OUT_INDICES[self.arch])

    @property
    def reductions(self) -> tuple[int, ...]:
        """Input size over output size, for the three outputs."""
        return (2, 4, 8)

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> list[jax.Array]:
        layer, width = self.layer, self.width
        x = layer.conv_norm_act(
            width(16), 3, stride=2, padding="same", activation="hard_swish", name="layer0"
        )(x, train=train)
        features = [x]
        for i, (kernel_size, expanded, channels, *rest) in enumerate(BLOCKS[self.arch], 1):
            x = InvertedResidual(
                layer, kernel_size, width(expanded), width(channels), *rest, name=f"layer{i}"
            )(x, train=train)
            features.append(x)
        last = layer.conv_norm_act(
            width(LAST_CHANNELS[self.arch]),
            1,
            activation="hard_swish",
            name=f"layer{len(features)}",
        )
        features.append(last(x, train=train))
        return [features[i] for i in OUT_INDICES[self.arch]]
