"""HRNetV2p (arXiv:1904.04514): parallel branches at four resolutions that exchange what they know, again and again."""

from collections.abc import Sequence

import jax
from flax import linen as nn

from jaxseg.models.backbones.resnet import Block
from jaxseg.models.layers import Layers
from jaxseg.ops import resize_bilinear


def _conv_norm(
    layer: Layers,
    x: jax.Array,
    features: int,
    kernel_size: int,
    stride: int,
    name: str,
    train: bool,
) -> jax.Array:
    x = layer.conv(features, kernel_size, stride=stride, name=f"{name}.0")(x)
    return layer.norm(name=f"{name}.1")(x, train=train)


class HRModule(nn.Module):
    """Residual blocks on every branch, then each branch takes the sum of all: strided convolutions down, bilinear resizing up.

    Maps [B, h / 2**i, w / 2**i, C_i] to maps of the same shapes.
    """

    layer: Layers
    blocks: int

    @nn.compact
    def __call__(self, maps: Sequence[jax.Array], *, train: bool) -> list[jax.Array]:
        branches = []
        for i, x in enumerate(maps):
            for k in range(self.blocks):
                x = Block(
                    self.layer,
                    x.shape[-1],
                    bottleneck=False,
                    zero_init=False,
                    name=f"branches.{i}.{k}",
                )(x, train=train)
            branches.append(x)
        return [
            nn.relu(sum(self.bring(x, j, branches[i], i, train) for j, x in enumerate(branches)))
            for i in range(len(maps))
        ]

    def bring(self, x: jax.Array, j: int, target: jax.Array, i: int, train: bool) -> jax.Array:
        """Branch j's map x in the shape of branch i's."""
        name, features = f"fuse_layers.{i}.{j}", target.shape[-1]
        if j == i:
            return x
        if j > i:
            x = _conv_norm(self.layer, x, features, 1, 1, name, train)
            # Where a size was odd, the doubled map is a pixel too large: the published networks resize it once more.
            doubled = resize_bilinear(x, [n * 2 ** (j - i) for n in x.shape[1:3]])
            return resize_bilinear(doubled, target.shape[1:3])
        for k in range(i - j):
            last = k == i - j - 1
            x = _conv_norm(
                self.layer, x, features if last else x.shape[-1], 3, 2, f"{name}.{k}", train
            )
            x = x if last else nn.relu(x)
        return x


class HRNet(nn.Module):
    """Images [B, H, W, C] to four maps at strides 4, 8, 16, 32 with base_channels * (1, 2, 4, 8) channels, finest first.

    Never gives up the fine resolution: each stage adds a branch at half the coarsest one's. `modules`: exchanges in stages
    2 to 4; `blocks`: residual blocks a branch before each. Resizing ignores `align_corners`, as published.
    """

    layer: Layers
    base_channels: int = 18
    modules: Sequence[int] = (1, 4, 3)
    blocks: int = 4
    stem_channels: int = 64

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the four outputs."""
        return tuple(self.base_channels * 2**i for i in range(4))

    @property
    def reductions(self) -> tuple[int, ...]:
        """Input size over output size, for the four outputs."""
        return (4, 8, 16, 32)

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> list[jax.Array]:
        for i in (1, 2):
            x = self.layer.conv(self.stem_channels, 3, stride=2, name=f"conv{i}")(x)
            x = nn.relu(self.layer.norm(name=f"bn{i}")(x, train=train))
        for k in range(self.blocks):
            x = Block(self.layer, self.stem_channels, zero_init=False, name=f"layer1.{k}")(
                x, train=train
            )
        maps = [x]
        for stage, modules in enumerate(self.modules, 1):
            maps = self.transition(maps, stage, train)
            for m in range(modules):
                maps = HRModule(self.layer, self.blocks, name=f"stage{stage + 1}.{m}")(
                    maps, train=train
                )
        return maps

    def transition(self, maps: Sequence[jax.Array], stage: int, train: bool) -> list[jax.Array]:
        """The maps with their widths made right, and a new one at half the resolution of the coarsest."""
        out = []
        for i, features in enumerate(self.channels[: stage + 1]):
            if i == len(maps):
                x = nn.relu(
                    _conv_norm(
                        self.layer, maps[-1], features, 3, 2, f"transition{stage}.{i}.0", train
                    )
                )
            elif maps[i].shape[-1] != features:
                x = nn.relu(
                    _conv_norm(self.layer, maps[i], features, 3, 1, f"transition{stage}.{i}", train)
                )
            else:
                x = maps[i]
            out.append(x)
        return out
