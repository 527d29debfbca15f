"""MobileNetV3 (arXiv:1905.02244), dilated to an output stride of 8."""

from typing import NamedTuple

import jax
from flax import linen as nn

from jaxseg.models.backbones.mobilenet_v2 import round_channels
from jaxseg.models.layers import Layers
from jaxseg.models.pooling import adaptive_avg_pool


class Row(NamedTuple):
    """One block of the architecture."""

    kernel_size: int
    expanded: int
    features: int
    excite: bool
    activation: str
    stride: int
    dilation: int


# Blocks that reduce the resolution below 1/8 in the ImageNet model are dilated here instead.
BLOCKS: dict[str, tuple[Row, ...]] = {
    "large": (
        Row(3, 16, 16, False, "relu", 1, 1),
        Row(3, 64, 24, False, "relu", 2, 1),
        Row(3, 72, 24, False, "relu", 1, 1),
        Row(5, 72, 40, True, "relu", 2, 1),
        Row(5, 120, 40, True, "relu", 1, 1),
        Row(5, 120, 40, True, "relu", 1, 1),
        Row(3, 240, 80, False, "hard_swish", 1, 2),
        Row(3, 200, 80, False, "hard_swish", 1, 2),
        Row(3, 184, 80, False, "hard_swish", 1, 2),
        Row(3, 184, 80, False, "hard_swish", 1, 2),
        Row(3, 480, 112, True, "hard_swish", 1, 2),
        Row(3, 672, 112, True, "hard_swish", 1, 2),
        Row(5, 672, 160, True, "hard_swish", 1, 4),
        Row(5, 960, 160, True, "hard_swish", 1, 4),
        Row(5, 960, 160, True, "hard_swish", 1, 4),
    ),
    "small": (
        Row(3, 16, 16, True, "relu", 2, 1),
        Row(3, 72, 24, False, "relu", 2, 1),
        Row(3, 88, 24, False, "relu", 1, 1),
        Row(5, 96, 40, True, "hard_swish", 1, 2),
        Row(5, 240, 40, True, "hard_swish", 1, 2),
        Row(5, 240, 40, True, "hard_swish", 1, 2),
        Row(5, 120, 48, True, "hard_swish", 1, 2),
        Row(5, 144, 48, True, "hard_swish", 1, 2),
        Row(5, 288, 96, True, "hard_swish", 1, 4),
        Row(5, 576, 96, True, "hard_swish", 1, 4),
        Row(5, 576, 96, True, "hard_swish", 1, 4),
    ),
}
LAST_CHANNELS = {"large": 960, "small": 576}
OUT_INDICES = {"large": (1, 3, 16), "small": (0, 1, 12)}


class SqueezeExcite(nn.Module):
    """Scales channels by weights computed from their global averages (arXiv:1709.01507)."""

    layer: Layers

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map x [B, H, W, C] to the same shape."""
        layer = self.layer
        channels = x.shape[-1]
        squeeze = layer.conv_norm_act(round_channels(channels // 4), 1, norm=False, name="conv1")
        excite = layer.conv_norm_act(
            channels, 1, norm=False, activation="hard_sigmoid", name="conv2"
        )
        return x * excite(squeeze(adaptive_avg_pool(x, 1), train=train), train=train)


class InvertedResidual(nn.Module):
    """MobileNetV2's block with squeeze and excite after the depthwise convolution.

    Attributes:
        layer: The model's settings.
        kernel_size: Height and width of the depthwise kernel.
        expanded: Channels after the expansion.
        features: Channels of the result.
        excite: Whether to apply squeeze and excite.
        activation: Name of the activation.
        stride: Stride of the depthwise convolution.
        dilation: Dilation of the depthwise convolution.
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
        """Map x [B, H, W, C] to [B, H / stride, W / stride, features]."""
        layer, y = self.layer, x
        if x.shape[-1] != self.expanded:
            expand = layer.conv_norm_act(
                self.expanded, 1, activation=self.activation, name="expand_conv"
            )
            y = expand(y, train=train)
        depthwise = layer.conv_norm_act(
            self.expanded,
            self.kernel_size,
            stride=self.stride,
            dilation=self.dilation,
            groups=self.expanded,
            padding="same" if self.stride > 1 else None,
            activation=self.activation,
            name="depthwise_conv",
        )
        y = depthwise(y, train=train)
        if self.excite:
            y = SqueezeExcite(layer, name="se")(y, train=train)
        linear = layer.conv_norm_act(self.features, 1, activation="identity", name="linear_conv")
        y = linear(y, train=train)
        return x + y if self.stride == 1 and x.shape[-1] == self.features else y


class MobileNetV3(nn.Module):
    """Inverted residuals with squeeze and excite and hard swish.

    Strided convolutions use TensorFlow's padding, which adds more at the bottom and right.

    Attributes:
        layer: The model's settings.
        arch: 'large' (outputs of 16, 24 and 960 channels) or 'small' (16, 16 and 576).
        widen_factor: Factor of all channels.
    """

    layer: Layers
    arch: str = "large"
    widen_factor: float = 1.0

    def _width(self, channels: int) -> int:
        return channels if self.widen_factor == 1 else round_channels(channels * self.widen_factor)

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the three outputs."""
        table = (16, *(row.features for row in BLOCKS[self.arch]), LAST_CHANNELS[self.arch])
        return tuple(self._width(table[i]) for i in OUT_INDICES[self.arch])

    @property
    def reductions(self) -> tuple[int, ...]:
        """Input size over output size, for the three outputs."""
        return (2, 4, 8)

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> list[jax.Array]:
        """Map images [B, H, W, C] to three maps, finest first."""
        layer = self.layer
        stem = layer.conv_norm_act(
            self._width(16), 3, stride=2, padding="same", activation="hard_swish", name="layer0"
        )
        features = [stem(x, train=train)]
        for i, row in enumerate(BLOCKS[self.arch], 1):
            widths = {
                "expanded": self._width(row.expanded),
                "features": self._width(row.features),
            }
            block = InvertedResidual(layer, **(row._asdict() | widths), name=f"layer{i}")
            features.append(block(features[-1], train=train))
        last = layer.conv_norm_act(
            self._width(LAST_CHANNELS[self.arch]),
            1,
            activation="hard_swish",
            name=f"layer{len(features)}",
        )
        features.append(last(features[-1], train=train))
        return [features[i] for i in OUT_INDICES[self.arch]]
