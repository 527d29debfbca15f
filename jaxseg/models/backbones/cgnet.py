"""CGNet (arXiv:1811.08201): a small network whose every block looks at a pixel, its surroundings and the whole image."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseg.models.initializers import KAIMING, ZEROS
from jaxseg.models.layers import Layers, PReLU, adaptive_avg_pool, avg_pool


class ContextGuidedBlock(nn.Module):
    """Local and dilated depthwise convolutions side by side, then channels weighed by their global averages.

    [B, H, W, C] -> [B, H, W, features], the input added; or [B, H / 2, W / 2, features] with `downsample`.
    """

    layer: Layers
    features: int
    dilation: int = 2
    reduction: int = 16
    downsample: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        layer, down = self.layer, self.downsample
        width = self.features if down else self.features // 2
        first = dict(kernel_size=3, stride=2) if down else dict(kernel_size=1)
        y = layer.conv_norm_act(width, **first, activation="prelu", name="conv1x1")(x, train=train)
        local = layer.conv(width, 3, groups=width, name="f_loc")(y)
        surrounding = layer.conv(width, 3, groups=width, dilation=self.dilation, name="f_sur")(y)
        y = layer.norm(name="bn")(jnp.concatenate([local, surrounding], axis=-1), train=train)
        y = PReLU(name="activate")(y)
        if down:
            y = layer.conv(self.features, 1, name="bottleneck")(y)
        weights = self.dense(self.features // self.reduction, "f_glo.fc.0")(
            adaptive_avg_pool(y, 1)[:, 0, 0]
        )
        weights = nn.sigmoid(self.dense(self.features, "f_glo.fc.2")(nn.relu(weights)))
        y = y * weights[:, None, None, :]
        return y if down else x + y

    def dense(self, features: int, name: str) -> nn.Dense:
        """A fully connected layer."""
        return nn.Dense(
            features, dtype=self.layer.dtype, kernel_init=KAIMING, bias_init=ZEROS, name=name
        )


class CGNet(nn.Module):
    """Images [B, H, W, 3] to three maps at strides 2, 4, 8, finest first: 35, 131 and 256 channels.

    Each level ends with what it began with joined on, and the image itself, pooled, is injected twice. PReLU throughout.
    """

    layer: Layers
    widths: Sequence[int] = (32, 64, 128)
    blocks: Sequence[int] = (3, 21)
    dilations: Sequence[int] = (2, 4)
    reduction_factors: Sequence[int] = (8, 16)

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the three outputs, for images of three."""
        stem, first, second = self.widths
        return (stem + 3, 2 * first + 3, 2 * second)

    @property
    def reductions(self) -> tuple[int, ...]:
        """Input size over output size, for the three outputs."""
        return (2, 4, 8)

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> list[jax.Array]:
        half = avg_pool(x, 3, 2, padding=1)
        injections = [half, avg_pool(half, 3, 2, padding=1), None]
        for i in range(3):
            conv = self.layer.conv_norm_act(
                self.widths[0], 3, stride=2 if i == 0 else 1, activation="prelu", name=f"stem.{i}"
            )
            x = conv(x, train=train)
        features = [self.join([x, injections[0]], 0, train)]
        for level in (1, 2):
            x, joined = self.level(features[-1], level, train)
            joined = [x, joined] if level == 1 else [joined, x]
            features.append(self.join([*joined, injections[level]], level, train))
        return features

    def level(self, x: jax.Array, level: int, train: bool) -> tuple[jax.Array, jax.Array]:
        """Blocks of a level: the last one's output and the first one's."""
        first = None
        for i in range(self.blocks[level - 1]):
            x = ContextGuidedBlock(
                self.layer,
                self.widths[level],
                self.dilations[level - 1],
                self.reduction_factors[level - 1],
                i == 0,
                name=f"level{level}.{i}",
            )(x, train=train)
            first = x if i == 0 else first
        return x, first

    def join(self, maps: Sequence[jax.Array | None], level: int, train: bool) -> jax.Array:
        """Maps joined, normalised and activated."""
        x = jnp.concatenate([m for m in maps if m is not None], axis=-1)
        x = self.layer.norm(name=f"norm_prelu_{level}.0")(x, train=train)
        return PReLU(name=f"norm_prelu_{level}.1")(x)
