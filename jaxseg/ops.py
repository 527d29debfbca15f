"""Pure functions of images and maps [B, H, W, C] that models, losses and inference share."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike


def per_channel(vector: jax.Array, ndim: int) -> jax.Array:
    """Return a vector [C] as [1, ..., 1, C] with `ndim` axes."""
    return vector.reshape((1,) * (ndim - 1) + (-1,))


# --- Resizing -------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=256)
def _interpolation(source: int, target: int, align_corners: bool) -> np.ndarray:
    """Linear interpolation as a float32 matrix [target, source], with PyTorch's weights."""
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


def apply_matrices(x: jax.Array, rows: np.ndarray | None, columns: np.ndarray | None) -> jax.Array:
    """Multiply each channel of an image by a matrix from the left and one from the right.

    Args:
        x: Images [B, H, W, C]; float32 is multiplied in full precision (no TF32).
        rows: Matrix [H', H]; None for the identity.
        columns: Matrix [W', W]; None for the identity.

    Returns:
        Images [B, H', W', C] of the same dtype.
    """
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    if rows is not None:
        x = jnp.einsum("Hh,bhwc->bHwc", rows.astype(x.dtype), x, precision=precision)
    if columns is not None:
        x = jnp.einsum("Ww,bhwc->bhWc", columns.astype(x.dtype), x, precision=precision)
    return x


def resize_bilinear(x: jax.Array, size: Sequence[int], align_corners: bool = False) -> jax.Array:
    """Resize bilinearly without antialiasing, as PyTorch's `interpolate` does.

    Written as two matrix products, which are exact, quick on every backend, and whose gradient
    needs no scatter.

    Args:
        x: Images [B, h, w, C], floating point.
        size: (H, W) in pixels.
        align_corners: Whether the centres of the corner pixels coincide, rather than the corners of
            the images.

    Returns:
        Images [B, H, W, C] of the same dtype.
    """
    rows, columns = (
        None if n == m else _interpolation(n, int(m), align_corners)
        for n, m in zip(x.shape[1:3], size)
    )
    return apply_matrices(x, rows, columns)


def resize_nearest(x: jax.Array, size: Sequence[int]) -> jax.Array:
    """Resize to the nearest pixel, as PyTorch's mode='nearest': output i is input floor(i h / H).

    Args:
        x: Images [B, h, w, C].
        size: (H, W) in pixels.

    Returns:
        Images [B, H, W, C] of the same dtype.
    """
    for axis, target in zip((1, 2), size):
        if x.shape[axis] != target:
            x = jnp.take(x, np.arange(target) * x.shape[axis] // target, axis=axis)
    return x


def resize_concat(features: Sequence[jax.Array], align_corners: bool) -> jax.Array:
    """Resize feature maps bilinearly to the size of the first, and concatenate their channels.

    Args:
        features: Feature maps [B, h_i, w_i, C_i].
        align_corners: See `resize_bilinear`.

    Returns:
        Features [B, h_0, w_0, sum of C_i].
    """
    size = features[0].shape[1:3]
    return jnp.concatenate([resize_bilinear(f, size, align_corners) for f in features], axis=-1)


# --- Normalisation --------------------------------------------------------------------------------


def normalize(
    image: jax.Array, mean: ArrayLike, std: ArrayLike, size: jax.Array | None = None
) -> jax.Array:
    """Normalise images per channel and set their padding to 0.

    Args:
        image: Images [B, H, W, C], uint8, uint16 or float32, in the units of the data.
        mean: Mean per channel [C], in the same units.
        std: Standard deviation per channel [C], in the same units.
        size: Heights and widths [B, 2], int, in pixels, of the images without the padding below
            and to the right. None for images without padding.

    Returns:
        (image - mean) / std [B, H, W, C], float32.
    """
    mean, std = (per_channel(jnp.asarray(v, jnp.float32), 4) for v in (mean, std))
    x = (image.astype(jnp.float32) - mean) / std
    if size is None:
        return x
    rows = jnp.arange(x.shape[1])[None, :] < size[:, :1]
    columns = jnp.arange(x.shape[2])[None, :] < size[:, 1:]
    return jnp.where((rows[:, :, None] & columns[:, None, :])[..., None], x, 0)


# --- Sampling at points ---------------------------------------------------------------------------


def sample_nearest(x: jax.Array, points: jax.Array, align_corners: bool = False) -> jax.Array:
    """Sample maps at the pixels nearest to points; ties go to the even pixel within the map.

    Args:
        x: Maps [B, H, W].
        points: Points [B, P, 2] as (x, y), each 0 to 1 from the image's left or top edge.
        align_corners: Whether 0 and 1 are the centres of the outermost pixels, not their edges.

    Returns:
        Values [B, P] of the maps' dtype.
    """
    position = jnp.round(_positions(points, x.shape[1:3], align_corners)).astype(jnp.int32)
    columns, rows = (jnp.clip(position[..., i], 0, x.shape[2 - i] - 1) for i in (0, 1))
    return _take(x[..., None], columns, rows)[..., 0]


def _positions(points: jax.Array, size: Sequence[int], align_corners: bool) -> jax.Array:
    """Points [B, P, 2], (x, y) in 0 to 1, as pixel positions (x, y) on a map of `size` (H, W)."""
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
    """Sample maps at points, interpolated between pixels and towards 0 outside the map.

    Args:
        x: Maps [B, H, W, C], floating point.
        points: Points [B, P, 2] as (x, y), each 0 to 1 from the image's left or top edge.
        align_corners: Whether 0 and 1 are the centres of the outermost pixels, not their edges.

    Returns:
        Values [B, P, C] of the maps' dtype.
    """
    position = _positions(points, x.shape[1:3], align_corners)
    low = jnp.floor(position)
    weight = (position - low).astype(x.dtype)
    column, row = (low[..., i].astype(jnp.int32) for i in (0, 1))
    total = jnp.zeros((), x.dtype)
    for right in (0, 1):
        for down in (0, 1):
            x_share = weight[..., :1] if right else 1 - weight[..., :1]
            y_share = weight[..., 1:] if down else 1 - weight[..., 1:]
            total += x_share * y_share * _take(x, column + right, row + down)
    return total
