"""ResNeSt (arXiv:2004.08955): ResNet V1d whose 3x3 convolutions are split in `radix` parts, weighed by attention over channels."""

import jax
from flax import linen as nn

from jaxseg.models.backbones.resnet import ResNet
from jaxseg.models.layers import Layers
from jaxseg.models.pooling import adaptive_avg_pool, avg_pool


class SplitAttention(nn.Module):
    """`radix` parallel 3x3 convolutions; their global averages decide, by a softmax over the parts, how they are mixed.

    [B, H, W, C] -> [B, H, W, features].
    """

    layer: Layers
    features: int
    stride: int = 1
    dilation: int = 1
    radix: int = 2
    reduction: int = 4

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        layer, width = self.layer, self.features * self.radix
        hidden = max(x.shape[-1] * self.radix // self.reduction, 32)
        x = layer.conv(
            width, 3, stride=self.stride, dilation=self.dilation, groups=self.radix, name="conv"
        )(x)
        x = nn.relu(layer.norm(name="bn0")(x, train=train))
        parts = x.reshape(*x.shape[:3], self.radix, self.features)
        pooled = adaptive_avg_pool(parts.sum(3), 1)
        pooled = layer.conv(hidden, 1, use_bias=True, name="fc1")(pooled)
        pooled = nn.relu(layer.norm(name="bn1")(pooled, train=train))
        weights = layer.conv(width, 1, use_bias=True, name="fc2")(pooled).reshape(
            -1, 1, 1, self.radix, self.features
        )
        weights = (
            nn.softmax(weights.astype("float32"), axis=3) if self.radix > 1 else nn.sigmoid(weights)
        )
        return (parts * weights.astype(x.dtype)).sum(3)


class SplitAttentionBlock(nn.Module):
    """A bottleneck [B, H, W, C] -> [B, H / stride, W / stride, 4 * width] around split attention.

    Strides are average pools: 3x3 after the attention, and in the shortcut as in ResNet V1d.
    """

    layer: Layers
    width: int
    stride: int = 1
    dilation: int = 1
    radix: int = 2
    reduction: int = 4
    avg_down_stride: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        layer, pool = self.layer, self.avg_down_stride and self.stride > 1
        y = layer.conv(self.width, 1, name="conv1")(x)
        y = nn.relu(layer.norm(name="bn1")(y, train=train))
        stride = 1 if pool else self.stride
        y = SplitAttention(
            layer, self.width, stride, self.dilation, self.radix, self.reduction, name="conv2"
        )(y, train=train)
        if pool:
            y = avg_pool(y, 3, self.stride, padding=1)
        y = layer.conv(4 * self.width, 1, name="conv3")(y)
        y = layer.norm(name="bn3")(y, train=train)
        if self.stride > 1 or x.shape[-1] != y.shape[-1]:
            if self.stride > 1:
                x = avg_pool(x, self.stride, self.stride, count_include_pad=False, ceil_mode=True)
            x = layer.conv(y.shape[-1], 1, name="downsample.1")(x)
            x = layer.norm(name="downsample.2")(x, train=train)
        return nn.relu(x + y)


class ResNeSt(ResNet):
    """Images [B, H, W, C] to four maps, finest first, as ResNet; `radix` parts in each 3x3 convolution."""

    depth: int = 101
    stem: str = "v1d"
    stem_channels: int = 128
    radix: int = 2
    reduction: int = 4
    avg_down_stride: bool = True

    def block(self, width: int, stride: int, dilation: int, name: str) -> nn.Module:
        """One residual block."""
        split = dict(
            radix=self.radix, reduction=self.reduction, avg_down_stride=self.avg_down_stride
        )
        return SplitAttentionBlock(self.layer, width, stride, dilation, **split, name=name)
