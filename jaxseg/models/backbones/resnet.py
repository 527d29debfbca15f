"""ResNet V1 (arXiv:1512.03385), V1c and V1d (arXiv:1812.01187), with optionally dilated stages."""

from collections.abc import Sequence

import jax
from flax import linen as nn

from jaxseg.errors import ConfigError
from jaxseg.models.initializers import ONES, ZEROS
from jaxseg.models.layers import Layers
from jaxseg.models.pooling import avg_pool, max_pool
from jaxseg.registry import lookup

# Residual blocks of each stage, by depth.
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
    """A residual block: [B, H, W, C] to [B, H / stride, W / stride, width * expansion].

    The expansion is 4 with a bottleneck and 1 without.

    Attributes:
        layer: The model's settings.
        width: Channels of the 3x3 convolutions.
        stride: Stride of the first 3x3 convolution.
        dilation: Dilation of the first 3x3 convolution.
        bottleneck: Whether to use one 3x3 convolution between two 1x1 ones, not two 3x3 ones.
        average_down: Whether the shortcut strides by an average pool (V1d).
        zero_init: Whether the last norm's scale starts at 0, so that the block starts as identity.
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
        """Apply the block."""
        channels = self.width * (4 if self.bottleneck else 1)
        spatial = self.layer.conv(
            self.width,
            3,
            stride=self.stride,
            dilation=self.dilation,
            name="conv2" if self.bottleneck else "conv1",
        )
        if self.bottleneck:
            first = self.layer.conv(self.width, 1, name="conv1")
            convs = [first, spatial, self.layer.conv(channels, 1, name="conv3")]
        else:
            convs = [spatial, self.layer.conv(channels, 3, name="conv2")]
        y = x
        for i, conv in enumerate(convs, 1):
            last = i == len(convs)
            scale_init = ZEROS if last and self.zero_init else ONES
            y = self.layer.norm(name=f"bn{i}", scale_init=scale_init)(conv(y), train=train)
            y = y if last else nn.relu(y)
        return nn.relu(y + self._shortcut(x, channels, train))

    def _shortcut(self, x: jax.Array, channels: int, train: bool) -> jax.Array:
        """The input, projected to the shape of the block's output."""
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
    """Return the dilation of each block of a stage.

    Args:
        blocks: Number of blocks.
        dilation: Dilation of the stage.
        contract: Whether the first block has half of the dilation.
        multi_grid: One dilation for each block, which overrides the rest; () for none.

    Returns:
        The dilations.

    Raises:
        ConfigError: `multi_grid` has fewer values than there are blocks.
    """
    if multi_grid:
        if len(multi_grid) < blocks:
            raise ConfigError(
                f"multi_grid {tuple(multi_grid)} has {len(multi_grid)} dilations for a stage of "
                f"{blocks} blocks",
                field="multi_grid",
                hint="give one for each block",
            )
        return list(multi_grid[:blocks])
    first = dilation // 2 if contract and dilation > 1 else dilation
    return [first] + [dilation] * (blocks - 1)


class ResNet(nn.Module):
    """Four stages of residual blocks: images [B, H, W, C] to four maps, finest first.

    Attributes:
        layer: The model's settings.
        depth: Number of layers, a key of `BLOCKS`.
        stem: 'v1' for one 7x7 convolution, 'v1c' for three 3x3 convolutions, 'v1d' for the same
            with average-pooled shortcuts.
        base_channels: Width of the first stage; each further stage doubles it.
        stem_channels: Channels of the stem.
        strides: Strides of the stages' first blocks, after the stem's 4.
        dilations: Dilations of the stages.
        multi_grid: Dilation of each block of the last stage; () for the stage's dilation.
        contract_dilation: Whether a stage's first block has half of the stage's dilation.
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
        """Make one residual block (ResNeSt has its own)."""
        return Block(
            self.layer, width, stride, dilation, self.depth >= 50, self.stem == "v1d", name=name
        )

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> list[jax.Array]:
        """Map images [B, H, W, C] to four maps at 1/4 of their resolution and below."""
        x = max_pool(self._stem(x, train), 3, 2, 1)
        features = []
        stages = lookup(BLOCKS, self.depth, "depth of a ResNet")
        for i, (blocks, stride, dilation) in enumerate(zip(stages, self.strides, self.dilations)):
            grid = self.multi_grid if i == 3 else ()
            dilations = stage_dilations(blocks, dilation, self.contract_dilation, grid)
            for j, block_dilation in enumerate(dilations):
                block = self.block(
                    self.base_channels * 2**i,
                    stride if j == 0 else 1,
                    block_dilation,
                    f"layer{i + 1}.{j}",
                )
                x = block(x, train=train)
            features.append(x)
        return features

    def _stem(self, x: jax.Array, train: bool) -> jax.Array:
        """Convolve images to half of their resolution."""
        if self.stem == "v1":
            x = self.layer.conv(self.stem_channels, 7, stride=2, name="conv1")(x)
            return nn.relu(self.layer.norm(name="bn1")(x, train=train))
        half, full = self.stem_channels // 2, self.stem_channels
        for i, (width, stride) in enumerate([(half, 2), (half, 1), (full, 1)]):
            x = self.layer.conv(width, 3, stride=stride, name=f"stem.{3 * i}")(x)
            x = nn.relu(self.layer.norm(name=f"stem.{3 * i + 1}")(x, train=train))
        return x
