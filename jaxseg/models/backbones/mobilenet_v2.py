"""MobileNetV2 (arXiv:1801.04381), dilated to an output stride of 8."""

import dataclasses
from collections.abc import Sequence

import jax
from flax import linen as nn

from jaxseg.models.layers import Layers

# Expansion, channels and blocks of each stage.
STAGES = (
    (1, 16, 1),
    (6, 24, 2),
    (6, 32, 3),
    (6, 64, 4),
    (6, 96, 3),
    (6, 160, 3),
    (6, 320, 1),
)


def round_channels(channels: float, divisor: int = 8) -> int:
    """Round to the nearest multiple of `divisor`, but never by more than 10% down.

    Args:
        channels: Number of channels.
        divisor: Divisor of the result, which is also the smallest result.

    Returns:
        The rounded number.
    """
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


class InvertedResidual(nn.Module):
    """A 1x1 expansion, a depthwise convolution and a linear 1x1 projection (arXiv:1801.04381).

    The input is added to the result if their shapes are equal.

    Attributes:
        layer: The model's settings.
        features: Channels of the result.
        stride: Stride of the depthwise convolution.
        dilation: Dilation of the depthwise convolution.
        expansion: Factor of the expansion; 1 leaves the expansion out.
    """

    layer: Layers
    features: int
    stride: int = 1
    dilation: int = 1
    expansion: int = 6

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map x [B, H, W, C] to [B, H / stride, W / stride, features]."""
        layer = self.layer
        width = x.shape[-1] * self.expansion
        y = x
        index = 0
        if self.expansion != 1:
            y = layer.conv_norm_act(width, 1, name="conv.0")(y, train=train)
            index = 1
        depthwise = layer.conv_norm_act(
            width, 3, stride=self.stride, dilation=self.dilation, groups=width, name=f"conv.{index}"
        )
        project = layer.conv_norm_act(
            self.features, 1, activation="identity", name=f"conv.{index + 1}"
        )
        y = project(depthwise(y, train=train), train=train)
        return x + y if self.stride == 1 and x.shape[-1] == self.features else y


class MobileNetV2(nn.Module):
    """Seven stages of inverted residuals, with ReLU6 throughout.

    Attributes:
        layer: The model's settings.
        widen_factor: Factor of all channels.
        strides: Strides of the stages' first blocks.
        dilations: Dilations of the stages' first blocks.
        out_indices: Stages whose maps are the outputs.
    """

    layer: Layers
    widen_factor: float = 1.0
    strides: Sequence[int] = (1, 2, 2, 1, 1, 1, 1)
    dilations: Sequence[int] = (1, 1, 1, 2, 2, 4, 4)
    out_indices: Sequence[int] = (1, 2, 4, 6)

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the outputs."""
        return tuple(round_channels(STAGES[i][1] * self.widen_factor) for i in self.out_indices)

    @property
    def reductions(self) -> tuple[int, ...]:
        """Input size over output size, for the outputs."""
        total, out = 2, []
        for stride in self.strides:
            total *= stride
            out.append(total)
        return tuple(out[i] for i in self.out_indices)

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> list[jax.Array]:
        """Map images [B, H, W, C] to the maps of `out_indices`, finest first."""
        layer = dataclasses.replace(self.layer, activation="relu6")
        stem = layer.conv_norm_act(
            round_channels(32 * self.widen_factor), 3, stride=2, name="conv1"
        )
        x = stem(x, train=train)
        features = []
        stages = zip(STAGES, self.strides, self.dilations)
        for i, ((expansion, channels, blocks), stride, dilation) in enumerate(stages, 1):
            width = round_channels(channels * self.widen_factor)
            for j in range(blocks):
                first = (stride, dilation) if j == 0 else (1, 1)
                block = InvertedResidual(layer, width, *first, expansion, name=f"layer{i}.{j}")
                x = block(x, train=train)
            features.append(x)
        return [features[i] for i in self.out_indices]
