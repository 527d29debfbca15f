"""PSANet's head: point-wise spatial attention (Zhao et al., ECCV 2018)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseg.models.convolution import convolve
from jaxseg.models.initializers import KAIMING
from jaxseg.models.layers import Layers
from jaxseg.ops import resize_bilinear


def relative_to_absolute(scores: jax.Array, centre: int) -> jax.Array:
    """Scores [N, L, M, R] of position i about position i + m - centre, laid out by position: [N, L, L, R], 0 where there is none.

    M must not reach beyond the other end (centre < L, M - centre <= L). Row i has to move by L - 1 - i: flattened and cut into
    rows one shorter, rows do that by themselves, so neither this nor its gradient needs a gather.
    """
    n, length, reach, rest = scores.shape
    before = length - 1 - centre
    padded = jnp.pad(scores, ((0, 0), (0, 0), (before, 2 * length - reach - before), (0, 0)))
    flat = padded.reshape(n, 2 * length**2, rest)[
        :, length - 1 : length - 1 + length * (2 * length - 1)
    ]
    return flat.reshape(n, length, 2 * length - 1, rest)[:, :, :length]


class PointwiseMask(nn.Module):
    """What every position says of every other: x [B, h, w, C] -> float32 scores [B, h, H, w, W] of (h, w) about (H, W).

    One 1x1 convolution gives a mask of mask_size around each position; scores outside of it are 0. Only the part of the
    kernel that falls on the map is used.
    """

    layer: Layers
    mask_size: Sequence[int]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        (batch, height, width, channels), (rows, columns) = x.shape, self.mask_size
        kernel = self.param("kernel", KAIMING, (1, 1, channels, rows * columns)).reshape(
            1, 1, channels, rows, columns
        )
        top, left = (
            max((m - 1) // 2 - (n - 1), 0) for m, n in zip((rows, columns), (height, width))
        )
        centre_y, centre_x = (rows - 1) // 2 - top, (columns - 1) // 2 - left
        kernel = kernel[..., top : top + centre_y + height, left : left + centre_x + width].astype(
            x.dtype
        )
        rows, columns = kernel.shape[-2:]
        scores = convolve(x, kernel.reshape(1, 1, channels, rows * columns)).astype(jnp.float32)
        scores = scores.reshape(batch, height, width, rows, columns).swapaxes(2, 3)
        scores = relative_to_absolute(
            scores.reshape(batch, height, rows, width * columns), centre_y
        )
        scores = relative_to_absolute(
            scores.reshape(batch * height * height, width, columns, 1), centre_x
        )
        return scores.reshape(batch, height, height, width, width)


class PSAHead(nn.Module):
    """Every position predicts a mask over its surroundings, twice: what to collect from where, and what to distribute to where.

    Features [B, h, w, C] to class scores [B, h, w, K]; attention runs at 1 / shrink of that resolution. Where h and w are both
    odd it is resized with aligned corners, whatever the model does, and otherwise without.
    """

    num_classes: int
    channels: int
    layer: Layers
    in_index: int = -1
    mask_size: Sequence[int] = (97, 97)
    shrink: int = 2

    def _attend(
        self, x: jax.Array, suffix: str, size: tuple[int, int], align_corners: bool, train: bool
    ) -> jax.Array:
        layer = self.layer
        value = layer.conv_norm_act(self.channels, 1, name=f"reduce{suffix}")(x, train=train)
        value = resize_bilinear(value, size, align_corners)
        hidden = layer.conv_norm_act(self.channels, 1, name=f"attention{suffix}.0")(
            value, train=train
        )
        scores = PointwiseMask(layer, self.mask_size, name=f"attention{suffix}.1")(hidden)
        # Weights of the sources add to 1: of the positions (H, W) looked at when collecting, of the speakers (h, w) when distributing.
        axes, equation = ((1, 3), "bhHwW,bhwc->bHWc") if suffix else ((2, 4), "bhHwW,bHWc->bhwc")
        return jnp.einsum(equation, jax.nn.softmax(scores, axis=axes).astype(value.dtype), value)

    @nn.compact
    def __call__(self, features, previous=None, *, train: bool) -> tuple[jax.Array, dict]:
        layer, x = self.layer, features[self.in_index]
        size, align_corners = x.shape[1:3], layer.align_corners
        if self.shrink != 1:
            align_corners = all(n % self.shrink for n in size)
            size = tuple(
                (n - 1) // self.shrink + 1 if align_corners else n // self.shrink for n in size
            )
        attended = [self._attend(x, suffix, size, align_corners, train) for suffix in ("", "_p")]
        # A 1x1 convolution that pads, so the result is larger by a border of 1; the published weights were trained with it.
        context = layer.conv_norm_act(x.shape[-1], 1, padding=1, name="proj")(
            jnp.concatenate(attended, axis=-1), train=train
        )
        context = resize_bilinear(context, x.shape[1:3], align_corners)
        x = jnp.concatenate([x.astype(context.dtype), context], axis=-1)
        x = layer.conv_norm_act(self.channels, 3, name="bottleneck")(x, train=train)
        return layer.classify(x, self.num_classes, train=train), {}
