"""CGNet (arXiv:1811.08201): blocks combine each pixel with its surroundings and the whole image."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseg.models.activations import PReLU
from jaxseg.models.initializers import KAIMING, ZEROS
from jaxseg.models.layers import Layers
from jaxseg.models.pooling import adaptive_avg_pool, avg_pool


class ContextGuidedBlock(nn.Module):
    """Local and dilated depthwise convolutions side by side, weighted by channel attention.

    Attributes:
        layer: The model's settings.
        features: Channels of the result.
        dilation: Dilation of the convolution that sees the surroundings.
        reduction: Factor by which the attention's hidden layer is narrower.
        downsample: Whether to halve the resolution; if not, the input is added to the result.
    """

    layer: Layers
    features: int
    dilation: int = 2
    reduction: int = 16
    downsample: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map x [B, H, W, C] to [B, H / stride, W / stride, features]."""
        layer, down = self.layer, self.downsample
        width = self.features if down else self.features // 2
        first = layer.conv_norm_act(
            width,
            3 if down else 1,
            stride=2 if down else 1,
            activation="prelu",
            name="conv1x1",
        )
        y = first(x, train=train)
        local = layer.conv(width, 3, groups=width, name="f_loc")(y)
        surrounding = layer.conv(width, 3, groups=width, dilation=self.dilation, name="f_sur")(y)
        y = layer.norm(name="bn")(jnp.concatenate([local, surrounding], axis=-1), train=train)
        y = PReLU(name="activate")(y)
        if down:
            y = layer.conv(self.features, 1, name="bottleneck")(y)
        means = adaptive_avg_pool(y, 1)[:, 0, 0]
        hidden = nn.relu(self._dense(self.features // self.reduction, "f_glo.fc.0")(means))
        weights = nn.sigmoid(self._dense(self.features, "f_glo.fc.2")(hidden))
        y = y * weights[:, None, None, :]
        return y if down else x + y

    def _dense(self, features: int, name: str) -> nn.Dense:
        return nn.Dense(
            features, dtype=self.layer.dtype, kernel_init=KAIMING, bias_init=ZEROS, name=name
        )


class CGNet(nn.Module):
    """Three levels of context-guided blocks; each level concatenates its first and last output.

    The pooled image is concatenated with the first two maps. All activations are PReLU.

    Attributes:
        layer: The model's settings.
        widths: Channels of the three levels.
        blocks: Blocks of levels 2 and 3.
        dilations: Dilations of levels 2 and 3.
        reduction_factors: Reductions of the channel attention in levels 2 and 3.
    """

    layer: Layers
    widths: Sequence[int] = (32, 64, 128)
    blocks: Sequence[int] = (3, 21)
    dilations: Sequence[int] = (2, 4)
    reduction_factors: Sequence[int] = (8, 16)

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the three outputs, for RGB images."""
        stem, first, second = self.widths
        return (stem + 3, 2 * first + 3, 2 * second)

    @property
    def reductions(self) -> tuple[int, ...]:
        """Input size over output size, for the three outputs."""
        return (2, 4, 8)

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> list[jax.Array]:
        """Map images [B, H, W, C] to three maps, finest first."""
        half = avg_pool(x, 3, 2, padding=1)
        quarter = avg_pool(half, 3, 2, padding=1)
        for i in range(3):
            conv = self.layer.conv_norm_act(
                self.widths[0], 3, stride=2 if i == 0 else 1, activation="prelu", name=f"stem.{i}"
            )
            x = conv(x, train=train)
        fine = self._join([x, half], 0, train)
        first, last = self._level(fine, 1, train)
        middle = self._join([last, first, quarter], 1, train)
        first, last = self._level(middle, 2, train)
        return [fine, middle, self._join([first, last], 2, train)]

    def _level(self, x: jax.Array, level: int, train: bool) -> tuple[jax.Array, jax.Array]:
        """The outputs of a level's first and last block."""
        outputs = []
        for i in range(self.blocks[level - 1]):
            block = ContextGuidedBlock(
                self.layer,
                self.widths[level],
                self.dilations[level - 1],
                self.reduction_factors[level - 1],
                downsample=i == 0,
                name=f"level{level}.{i}",
            )
            x = block(x, train=train)
            outputs.append(x)
        return outputs[0], outputs[-1]

    def _join(self, maps: Sequence[jax.Array], level: int, train: bool) -> jax.Array:
        """Maps concatenated, normalised and activated."""
        x = jnp.concatenate(maps, axis=-1)
        x = self.layer.norm(name=f"norm_prelu_{level}.0")(x, train=train)
        return PReLU(name=f"norm_prelu_{level}.1")(x)
