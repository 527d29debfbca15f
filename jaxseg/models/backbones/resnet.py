"""ResNet (arXiv:1512.03385) and the variants that segmentation uses (arXiv:1812.01187): V1, V1c, V1d; dilated stages."""

from collections.abc import Sequence

import jax
from flax import linen as nn

from jaxseg.errors import ConfigError
from jaxseg.models.initializers import ZEROS
from jaxseg.models.layers import Layers
from jaxseg.models.pooling import avg_pool, max_pool
from jaxseg.registry import lookup

BLOCKS = {
    10: (1, 1, 1, 1),
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
}


class Block(nn.Module):
    """A residual block [B, H, W, C] -> [B, H / stride, W / stride, width * (4 if bottleneck else 1)].

    The last norm starts at zero (`zero_init`), so that a new network begins as shallow ones. `average_down`: V1d's shortcut.
    """

    layer: Layers
    width: int
    stride: int = 1
    dilation: int = 1
    bottleneck: bool = True
    average_down: bool = False
    zero_init: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        channels = self.width * (4 if self.bottleneck else 1)
        spatial = dict(kernel_size=3, stride=self.stride, dilation=self.dilation)
        if self.bottleneck:
            steps = [
                (self.width, dict(kernel_size=1)),
                (self.width, spatial),
                (channels, dict(kernel_size=1)),
            ]
        else:
            steps = [(self.width, spatial), (channels, dict(kernel_size=3))]
        y = x
        for i, (features, kwargs) in enumerate(steps, 1):
            y = self.layer.conv(features, name=f"conv{i}", **kwargs)(y)
            last = dict(scale_init=ZEROS) if self.zero_init and i == len(steps) else {}
            y = self.layer.norm(name=f"bn{i}", **last)(y, train=train)
            y = y if i == len(steps) else nn.relu(y)
        return nn.relu(y + self.shortcut(x, channels, train))

    def shortcut(self, x: jax.Array, channels: int, train: bool) -> jax.Array:
        """The input, brought to the block's output shape."""
        if self.stride == 1 and x.shape[-1] == channels:
            return x
        stride, first = self.stride, 0
        if self.average_down:
            if stride > 1:
                x = avg_pool(x, stride, stride, count_include_pad=False, ceil_mode=True)
            stride, first = 1, 1
        x = self.layer.conv(channels, 1, stride=stride, name=f"downsample.{first}")(x)
        return self.layer.norm(name=f"downsample.{first + 1}")(x, train=train)


def stage_dilations(
    blocks: int, dilation: int, contract: bool, multi_grid: Sequence[int] = ()
) -> list[int]:
    """Dilation of each block of a stage: `multi_grid` replaces it; otherwise the first block may take half (`contract`)."""
    if multi_grid:
        if len(multi_grid) < blocks:
            raise ConfigError(
                f"multi_grid {tuple(multi_grid)} has {len(multi_grid)} dilations for a stage of "
                f"{blocks} blocks",
                field="multi_grid",
                hint="give one for each block",
            )
        return list(multi_grid[:blocks])
    return [dilation // 2 if contract and dilation > 1 else dilation] + [dilation] * (blocks - 1)


class ResNet(nn.Module):
    """Images [B, H, W, C] to four maps at strides 4 and 4 * cumulative `strides`, finest first.

    stem: 'v1' one 7x7 convolution; 'v1c' three 3x3; 'v1d' those and average-pooled shortcuts. `multi_grid` sets the
    dilations of the last stage's blocks.
    """

    layer: Layers
    depth: int = 50
    stem: str = "v1c"
    base_channels: int = 64
    stem_channels: int = 64
    strides: Sequence[int] = (1, 2, 2, 2)
    dilations: Sequence[int] = (1, 1, 1, 1)
    multi_grid: Sequence[int] = ()
    contract_dilation: bool = True

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the four outputs."""
        return tuple(self.base_channels * 2**i * (4 if self.depth >= 50 else 1) for i in range(4))

    @property
    def reductions(self) -> tuple[int, ...]:
        """Input size over output size, for the four outputs."""
        total, out = 4, []
        for stride in self.strides:
            total *= stride
            out.append(total)
        return tuple(out)

    def block(self, width: int, stride: int, dilation: int, name: str) -> nn.Module:
        """One residual block (ResNeSt has its own)."""
        return Block(
            self.layer, width, stride, dilation, self.depth >= 50, self.stem == "v1d", name=name
        )

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> list[jax.Array]:
        if self.stem == "v1":
            x = self.layer.conv(self.stem_channels, 7, stride=2, name="conv1")(x)
            x = nn.relu(self.layer.norm(name="bn1")(x, train=train))
        else:
            for i, (width, stride) in enumerate(
                [
                    (self.stem_channels // 2, 2),
                    (self.stem_channels // 2, 1),
                    (self.stem_channels, 1),
                ]
            ):
                x = self.layer.conv(width, 3, stride=stride, name=f"stem.{3 * i}")(x)
                x = nn.relu(self.layer.norm(name=f"stem.{3 * i + 1}")(x, train=train))
        x = max_pool(x, 3, 2, 1)
        features = []
        for i, (blocks, stride, dilation) in enumerate(
            zip(lookup(BLOCKS, self.depth, "depth of a ResNet"), self.strides, self.dilations)
        ):
            grid = self.multi_grid if i == 3 else ()
            for j, block_dilation in enumerate(
                stage_dilations(blocks, dilation, self.contract_dilation, grid)
            ):
                x = self.block(
                    self.base_channels * 2**i,
                    stride if j == 0 else 1,
                    block_dilation,
                    f"layer{i + 1}.{j}",
                )(x, train=train)
            features.append(x)
        return features
