"""ResNeSt (arXiv:2004.08955): ResNet V1d with split attention in place of 3x3 convolutions."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseg.models.backbones.resnet import ResNet
from jaxseg.models.layers import Layers
from jaxseg.models.pooling import adaptive_avg_pool, avg_pool


class SplitAttention(nn.Module):
    """Parallel 3x3 convolutions, weighted by a softmax computed from their global averages.

    Attributes:
        layer: The model's settings.
        features: Channels of the result.
        stride: Stride of the convolutions.
        dilation: Dilation of the convolutions.
        radix: Number of convolutions.
        reduction: Factor by which the attention's hidden layer is narrower.
    """

    layer: Layers
    features: int
    stride: int = 1
    dilation: int = 1
    radix: int = 2
    reduction: int = 4

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map x [B, H, W, C] to [B, H / stride, W / stride, features]."""
        layer = self.layer
        width = self.features * self.radix
        hidden = max(x.shape[-1] * self.radix // self.reduction, 32)
        conv = layer.conv(
            width, 3, stride=self.stride, dilation=self.dilation, groups=self.radix, name="conv"
        )
        x = nn.relu(layer.norm(name="bn0")(conv(x), train=train))
        parts = x.reshape(*x.shape[:3], self.radix, self.features)
        pooled = adaptive_avg_pool(parts.sum(3), 1)
        pooled = layer.conv(hidden, 1, use_bias=True, name="fc1")(pooled)
        pooled = nn.relu(layer.norm(name="bn1")(pooled, train=train))
        scores = layer.conv(width, 1, use_bias=True, name="fc2")(pooled)
        scores = scores.reshape(-1, 1, 1, self.radix, self.features)
        if self.radix > 1:
            weights = nn.softmax(scores.astype(jnp.float32), axis=3)
        else:
            weights = nn.sigmoid(scores)
        return (parts * weights.astype(x.dtype)).sum(3)


class SplitAttentionBlock(nn.Module):
    """A bottleneck around split attention: [B, H, W, C] to [B, H / stride, W / stride, 4 * width].

    Average pools reduce the resolution: a 3x3 pool after the attention, and as in ResNet V1d a pool
    in the shortcut.

    Attributes:
        layer: The model's settings.
        width: Channels of the attention.
        stride: Stride of the block.
        dilation: Dilation of the attention.
        radix: Number of convolutions in the attention.
        reduction: Reduction in the attention.
        avg_down_stride: Whether to stride by a pool after the attention, not by its convolution.
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
        """Apply the block."""
        layer = self.layer
        pool = self.avg_down_stride and self.stride > 1
        y = layer.conv(self.width, 1, name="conv1")(x)
        y = nn.relu(layer.norm(name="bn1")(y, train=train))
        attention = SplitAttention(
            layer,
            self.width,
            1 if pool else self.stride,
            self.dilation,
            self.radix,
            self.reduction,
            name="conv2",
        )
        y = attention(y, train=train)
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
    """ResNet with split attention: images [B, H, W, C] to four maps, finest first.

    Attributes:
        radix: Number of convolutions in an attention.
        reduction: Factor by which an attention's hidden layer is narrower.
        avg_down_stride: Whether to stride by a pool after the attention, not by its convolution.
    """

    depth: int = 101
    stem: str = "v1d"
    stem_channels: int = 128
    radix: int = 2
    reduction: int = 4
    avg_down_stride: bool = True

    def block(self, width: int, stride: int, dilation: int, name: str) -> nn.Module:
        """Make one residual block."""
        return SplitAttentionBlock(
            self.layer,
            width,
            stride,
            dilation,
            radix=self.radix,
            reduction=self.reduction,
            avg_down_stride=self.avg_down_stride,
            name=name,
        )
