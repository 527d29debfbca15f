"""PSANet's head: point-wise spatial attention (Zhao et al., ECCV 2018)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseg.models.convolution import convolve
from jaxseg.models.initializers import KAIMING
from jaxseg.models.layers import Features, HeadOutput, Layers
from jaxseg.ops import resize_bilinear


def relative_to_absolute(scores: jax.Array, centre: int) -> jax.Array:
    """Convert scores indexed by relative position to scores indexed by absolute position.

    Row i has to be shifted by L - 1 - i. Flattening the rows and cutting them one element shorter
    does this without a gather, in the gradient as well.

    Args:
        scores: Scores [N, L, M, R] of position i for position i + m - centre.
        centre: The index m of a position itself; centre < L and M - centre <= L, so that scores do
            not reach beyond the opposite end.

    Returns:
        Scores [N, L, L, R] of position i for position j, 0 outside the mask.
    """
    n, length, reach, rest = scores.shape
    before = length - 1 - centre
    padded = jnp.pad(scores, ((0, 0), (0, 0), (before, 2 * length - reach - before), (0, 0)))
    start = length - 1
    flat = padded.reshape(n, 2 * length**2, rest)[:, start : start + length * (2 * length - 1)]
    return flat.reshape(n, length, 2 * length - 1, rest)[:, :, :length]


class PointwiseMask(nn.Module):
    """The scores of every position for every other position.

    A 1x1 convolution predicts a mask around each position; scores outside the mask are 0. Only the
    part of the kernel that can fall on the map is used.

    Attributes:
        layer: The model's settings.
        mask_size: (height, width) of the mask.
    """

    layer: Layers
    mask_size: Sequence[int]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map x [B, h, w, C] to float32 scores [B, h, H, w, W] of (h, w) for (H, W)."""
        batch, height, width, channels = x.shape
        kernel, centre_y, centre_x = self._kernel(x)
        rows, columns = kernel.shape[-2:]
        scores = convolve(x, kernel.reshape(1, 1, channels, rows * columns)).astype(jnp.float32)
        scores = scores.reshape(batch, height, width, rows, columns).swapaxes(2, 3)
        scores = scores.reshape(batch, height, rows, width * columns)
        scores = relative_to_absolute(scores, centre_y)
        scores = scores.reshape(batch * height * height, width, columns, 1)
        scores = relative_to_absolute(scores, centre_x)
        return scores.reshape(batch, height, height, width, width)

    def _kernel(self, x: jax.Array) -> tuple[jax.Array, int, int]:
        """The part [1, 1, C, rows, columns] of the kernel that falls on the map, and its centre."""
        height, width, channels = x.shape[1:]
        rows, columns = self.mask_size
        kernel = self.param("kernel", KAIMING, (1, 1, channels, rows * columns))
        kernel = kernel.reshape(1, 1, channels, rows, columns)
        top = max((rows - 1) // 2 - (height - 1), 0)
        left = max((columns - 1) // 2 - (width - 1), 0)
        centre_y = (rows - 1) // 2 - top
        centre_x = (columns - 1) // 2 - left
        kernel = kernel[..., top : top + centre_y + height, left : left + centre_x + width]
        return kernel.astype(x.dtype), centre_y, centre_x


class PSAHead(nn.Module):
    """Attention by two masks that each position predicts: where to collect from and distribute to.

    Unless `shrink` is 1, the map is resized with aligned corners exactly if its height and width
    are no multiples of `shrink`, regardless of the model's `align_corners`.

    Attributes:
        num_classes: Number of classes K.
        channels: Channels of the convolutions.
        layer: The model's settings.
        in_index: The feature map to read.
        mask_size: (height, width) of the masks.
        shrink: Factor by which the attention's resolution is lower than the features'.
    """

    num_classes: int
    channels: int
    layer: Layers
    in_index: int = -1
    mask_size: Sequence[int] = (97, 97)
    shrink: int = 2

    @nn.compact
    def __call__(
        self, features: Features, previous: jax.Array | None = None, *, train: bool
    ) -> HeadOutput:
        """Map features [B, h, w, C] to class scores [B, h, w, K]."""
        layer = self.layer
        x = features[self.in_index]
        height, width = x.shape[1:3]
        align_corners = layer.align_corners
        if self.shrink != 1:
            align_corners = height % self.shrink != 0 and width % self.shrink != 0
            height, width = (self._shrunk(n, align_corners) for n in (height, width))
        attended = [
            self._attend(x, suffix, (height, width), align_corners, train) for suffix in ("", "_p")
        ]
        # Padding a 1x1 convolution enlarges the map by a border of 1 pixel; the published weights
        # were trained like this.
        conv = layer.conv_norm_act(x.shape[-1], 1, padding=1, name="proj")
        context = conv(jnp.concatenate(attended, axis=-1), train=train)
        context = resize_bilinear(context, x.shape[1:3], align_corners)
        x = jnp.concatenate([x.astype(context.dtype), context], axis=-1)
        x = layer.conv_norm_act(self.channels, 3, name="bottleneck")(x, train=train)
        return layer.classify(x, self.num_classes, train=train), {}

    def _shrunk(self, size: int, align_corners: bool) -> int:
        return (size - 1) // self.shrink + 1 if align_corners else size // self.shrink

    def _attend(
        self, x: jax.Array, suffix: str, size: tuple[int, int], align_corners: bool, train: bool
    ) -> jax.Array:
        """One branch: '' collects, '_p' distributes."""
        layer = self.layer
        reduce = layer.conv_norm_act(self.channels, 1, name=f"reduce{suffix}")
        value = resize_bilinear(reduce(x, train=train), size, align_corners)
        conv = layer.conv_norm_act(self.channels, 1, name=f"attention{suffix}.0")
        mask = PointwiseMask(layer, self.mask_size, name=f"attention{suffix}.1")
        scores = mask(conv(value, train=train))
        # The weights of all sources sum to 1: (H, W) when collecting, (h, w) when distributing.
        axes, equation = (2, 4), "bhHwW,bHWc->bhwc"
        if suffix:
            axes, equation = (1, 3), "bhHwW,bhwc->bHWc"
        weights = jax.nn.softmax(scores, axis=axes).astype(value.dtype)
        return jnp.einsum(equation, weights, value)
