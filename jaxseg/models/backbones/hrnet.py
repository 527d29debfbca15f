"""HRNetV2p (arXiv:1904.04514): parallel branches at four resolutions that exchange features."""

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
    """Residual blocks on every branch, followed by an exchange: each branch gets the sum of all.

    For the sum, strided convolutions shrink finer maps and bilinear resizing enlarges coarser ones.

    Attributes:
        layer: The model's settings.
        blocks: Residual blocks on each branch.
    """

    layer: Layers
    blocks: int

    @nn.compact
    def __call__(self, maps: Sequence[jax.Array], *, train: bool) -> list[jax.Array]:
        """Map the branches [B, h / 2**i, w / 2**i, C_i] to the same shapes."""
        branches = []
        for i, x in enumerate(maps):
            for k in range(self.blocks):
                block = Block(
                    self.layer,
                    x.shape[-1],
                    bottleneck=False,
                    zero_init=False,
                    name=f"branches.{i}.{k}",
                )
                x = block(x, train=train)
            branches.append(x)
        return [
            nn.relu(sum(self._resized(x, j, y, i, train) for j, x in enumerate(branches)))
            for i, y in enumerate(branches)
        ]

    def _resized(self, x: jax.Array, j: int, target: jax.Array, i: int, train: bool) -> jax.Array:
        """Branch j's map x in the shape of branch i's map, `target`."""
        name = f"fuse_layers.{i}.{j}"
        features = target.shape[-1]
        if j == i:
            return x
        if j > i:
            x = _conv_norm(self.layer, x, features, 1, 1, name, train)
            # If a size was odd, the doubled map is one pixel too large, and the published models
            # resize it once more.
            doubled = resize_bilinear(x, [n * 2 ** (j - i) for n in x.shape[1:3]])
            return resize_bilinear(doubled, target.shape[1:3])
        for k in range(i - j - 1):
            x = nn.relu(_conv_norm(self.layer, x, x.shape[-1], 3, 2, f"{name}.{k}", train))
        return _conv_norm(self.layer, x, features, 3, 2, f"{name}.{i - j - 1}", train)


class HRNet(nn.Module):
    """Four stages that keep the finest resolution; each adds a branch at half the coarsest one.

    As published, resizing ignores `align_corners`.

    Attributes:
        layer: The model's settings.
        base_channels: Channels of the finest map; coarser maps have 2, 4 and 8 times as many.
        modules: Exchanges in stages 2 to 4.
        blocks: Residual blocks on each branch before an exchange.
        stem_channels: Channels of the first convolutions.
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
        """Map images [B, H, W, C] to four maps, finest first."""
        for i in (1, 2):
            x = self.layer.conv(self.stem_channels, 3, stride=2, name=f"conv{i}")(x)
            x = nn.relu(self.layer.norm(name=f"bn{i}")(x, train=train))
        for k in range(self.blocks):
            block = Block(self.layer, self.stem_channels, zero_init=False, name=f"layer1.{k}")
            x = block(x, train=train)
        maps = [x]
        for stage, modules in enumerate(self.modules, 1):
            maps = self._transition(maps, stage, train)
            for m in range(modules):
                module = HRModule(self.layer, self.blocks, name=f"stage{stage + 1}.{m}")
                maps = module(maps, train=train)
        return maps

    def _transition(self, maps: Sequence[jax.Array], stage: int, train: bool) -> list[jax.Array]:
        """The maps with the stage's channels, and a new map at half the coarsest resolution."""
        out = []
        for i, features in enumerate(self.channels[: stage + 1]):
            name = f"transition{stage}.{i}"
            if i == len(maps):
                x = _conv_norm(self.layer, maps[-1], features, 3, 2, f"{name}.0", train)
                out.append(nn.relu(x))
            elif maps[i].shape[-1] != features:
                out.append(nn.relu(_conv_norm(self.layer, maps[i], features, 3, 1, name, train)))
            else:
                out.append(maps[i])
        return out
