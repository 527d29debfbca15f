"""Pure array functions on images and maps [B, H, W, C] that models, losses and inference share."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def per_channel(vector: jax.Array, ndim: int) -> jax.Array:
    """A vector [C] shaped to meet the last of `ndim` axes (rank promotion is explicit here)."""
    return vector.reshape((1,) * (ndim - 1) + (-1,))


@functools.lru_cache(maxsize=256)
def _interpolation(source: int, target: int, align_corners: bool) -> np.ndarray:
    """Linear interpolation as a [target, source] float32 matrix, as PyTorch's interpolate(mode='bilinear') weighs it."""
    position = np.arange(target, dtype=np.float64)
    if align_corners:
        position = position * ((source - 1) / max(target - 1, 1))
    else:
        position = np.maximum((position + 0.5) * (source / target) - 0.5, 0)
    low = np.minimum(position.astype(np.int64), source - 1)
    weight = position - low
    matrix = np.zeros((target, source))
    np.add.at(matrix, (np.arange(target), low), 1 - weight)
    np.add.at(matrix, (np.arange(target), np.minimum(low + 1, source - 1)), weight)
    return matrix.astype(np.float32)


def _apply_matrices(x: jax.Array, rows: np.ndarray | None, columns: np.ndarray | None) -> jax.Array:
    """Multiply x [B, H, W, C] along H and along W; float32 stays float32 (no TF32)."""
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    if rows is not None:
        x = jnp.einsum("Hh,bhwc->bHwc", rows.astype(x.dtype), x, precision=precision)
    if columns is not None:
        x = jnp.einsum("Ww,bhwc->bhWc", columns.astype(x.dtype), x, precision=precision)
    return x


def resize_bilinear(x: jax.Array, size: Sequence[int], align_corners: bool = False) -> jax.Array:
    """Bilinear resize of [B, h, w, C] to [B, H, W, C] without antialiasing, as PyTorch's interpolate does it.

    Written as two matrix products: exact, quick on every backend, and their gradient needs no scatter.
    """
    matrices = [
        None if n == m else _interpolation(n, int(m), align_corners)
        for n, m in zip(x.shape[1:3], size)
    ]
    return _apply_matrices(x, *matrices)


def resize_nearest(x: jax.Array, size: Sequence[int]) -> jax.Array:
    """Nearest resize of [B, h, w, C]: output i takes input floor(i h / H), as PyTorch's mode='nearest'."""
    for axis, target in zip((1, 2), size):
        if x.shape[axis] != target:
            x = jnp.take(x, np.arange(target) * x.shape[axis] // target, axis=axis)
    return x


def resize_concat(features: Sequence[jax.Array], align_corners: bool) -> jax.Array:
    """Feature maps of several sizes, brought to the first one's and joined along channels."""
    size = features[0].shape[1:3]
    return jnp.concatenate([resize_bilinear(f, size, align_corners) for f in features], axis=-1)


def normalize(image: jax.Array, mean, std, size: jax.Array | None = None) -> jax.Array:
    """(image - mean) / std as float32; image [B, H, W, C] uint8 or float in 0..255 (16-bit data: its own units).

    size: [B, 2] valid heights and widths; pixels beyond (the padding at the bottom and right) become 0.
    """
    mean, std = (per_channel(jnp.asarray(v, jnp.float32), 4) for v in (mean, std))
    x = (image.astype(jnp.float32) - mean) / std
    if size is None:
        return x
    rows = jnp.arange(x.shape[1])[None, :] < size[:, :1]
    columns = jnp.arange(x.shape[2])[None, :] < size[:, 1:]
    return jnp.where((rows[:, :, None] & columns[:, None, :])[..., None], x, 0)


def sample_nearest(x: jax.Array, points: jax.Array, align_corners: bool = False) -> jax.Array:
    """x [B, H, W] at the pixels nearest to points [B, P, 2], (x, y) in 0..1: [B, P]. A tie goes to the even pixel, within the map."""
    position = jnp.round(_positions(points, x.shape[1:3], align_corners)).astype(jnp.int32)
    columns, rows = (jnp.clip(position[..., i], 0, x.shape[2 - i] - 1) for i in (0, 1))
    return _take(x[..., None], columns, rows)[..., 0]


def _positions(points: jax.Array, size: Sequence[int], align_corners: bool) -> jax.Array:
    """Points [B, P, 2], (x, y) in 0..1 of the image, as pixel positions (x, y) on a map of `size` (H, W)."""
    extent = jnp.asarray(size[::-1], jnp.float32).reshape(1, 1, 2)
    return points * (extent - 1) if align_corners else points * extent - 0.5


def _take(x: jax.Array, columns: jax.Array, rows: jax.Array) -> jax.Array:
    """Pixels of x [B, H, W, C] at integer positions [B, P]: [B, P, C], 0 outside."""
    _, height, width, channels = x.shape
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    index = jnp.clip(rows, 0, height - 1) * width + jnp.clip(columns, 0, width - 1)
    values = jnp.take_along_axis(
        x.reshape(x.shape[0], height * width, channels), index[..., None], axis=1
    )
    return jnp.where(inside[..., None], values, 0)


def sample_bilinear(x: jax.Array, points: jax.Array, align_corners: bool = False) -> jax.Array:
    """x [B, H, W, C] at points [B, P, 2], (x, y) in 0..1, interpolated bilinearly between pixels and zeros outside: [B, P, C]."""
    position = _positions(points, x.shape[1:3], align_corners)
    low = jnp.floor(position)
    weight = (position - low).astype(x.dtype)
    column, row = (low[..., i].astype(jnp.int32) for i in (0, 1))
    total = 0
    for right in (0, 1):
        for down in (0, 1):
            share = jnp.abs(1 - right - weight[..., :1]) * jnp.abs(1 - down - weight[..., 1:])
            total += share * _take(x, column + right, row + down)
    return total
