"""MobileNetV2 (arXiv:1801.04381), dilated to an output stride of 8."""

import dataclasses
from collections.abc import Sequence

import jax
from flax import linen as nn

from jaxseg.models.layers import Layers

STAGES = (
    (1, 16, 1),
    (6, 24, 2),
    (6, 32, 3),
    (6, 64, 4),
    (6, 96, 3),
    (6, 160, 3),
    (6, 320, 1),
)  # expansion, channels, blocks


def round_channels(channels: float, divisor: int = 8) -> int:
    """The multiple of `divisor` nearest to `channels`, at least one, and no more than a tenth below."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


class InvertedResidual(nn.Module):
    """Expand by 1x1, filter depthwise, project by 1x1 without activation; the input is added where shapes allow (arXiv:1801.04381).

    [B, H, W, C] -> [B, H / stride, W / stride, features]. No expansion layer where `expansion` is 1.
    """

    layer: Layers
    features: int
    stride: int = 1
    dilation: int = 1
    expansion: int = 6

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        layer, y, width, i = self.layer, x, x.shape[-1] * self.expansion, 0
        if self.expansion != 1:
            y, i = layer.conv_norm_act(width, 1, name="conv.0")(y, train=train), 1
        y = layer.conv_norm_act(
            width, 3, stride=self.stride, dilation=self.dilation, groups=width, name=f"conv.{i}"
        )(y, train=train)
        y = layer.conv_norm_act(self.features, 1, activation="identity", name=f"conv.{i + 1}")(
            y, train=train
        )
        return x + y if self.stride == 1 and x.shape[-1] == self.features else y


class MobileNetV2(nn.Module):
    """Images [B, H, W, C] to the maps of the stages `out_indices`, finest first: 24, 32, 96 and 320 channels.

    Seven stages of inverted residuals; a stage's stride and dilation are its first block's. ReLU6 throughout.
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
        layer = dataclasses.replace(self.layer, activation="relu6")
        x = layer.conv_norm_act(round_channels(32 * self.widen_factor), 3, stride=2, name="conv1")(
            x, train=train
        )
        features = []
        for i, ((expansion, channels, blocks), stride, dilation) in enumerate(
            zip(STAGES, self.strides, self.dilations)
        ):
            width = round_channels(channels * self.widen_factor)
            for j in range(blocks):
                first = (stride, dilation) if j == 0 else (1, 1)
                x = InvertedResidual(layer, width, *first, expansion, name=f"layer{i + 1}.{j}")(
                    x, train=train
                )
            features.append(x)
        return [features[i] for i in self.out_indices]
