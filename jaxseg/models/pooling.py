"""Pooling of images [B, H, W, C] with PyTorch's windows and bins."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxseg.ops import apply_matrices


@functools.lru_cache(maxsize=256)
def _averaging(source: int, target: int) -> np.ndarray:
    """A matrix [target, source] that averages over bins floor(i n / s) to ceil((i + 1) n / s)."""
    matrix = np.zeros((target, source), np.float32)
    for i in range(target):
        start, stop = i * source // target, -(-(i + 1) * source // target)
        matrix[i, start:stop] = 1 / (stop - start)
    return matrix


def adaptive_avg_pool(x: jax.Array, size: int | Sequence[int]) -> jax.Array:
    """Average over a fixed grid of bins, like PyTorch's AdaptiveAvgPool2d.

    Args:
        x: Images [B, H, W, C], floating point.
        size: (h, w) of the grid, or one number for both.

    Returns:
        Averages [B, h, w, C] of the same dtype.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if height == width == 1:
        # Row by row: XLA on CPU adds thousands of numbers one by one, which loses precision.
        return x.mean(2, keepdims=True, dtype=jnp.float32).mean(1, keepdims=True).astype(x.dtype)
    rows = None if x.shape[1] == height else _averaging(x.shape[1], height)
    columns = None if x.shape[2] == width else _averaging(x.shape[2], width)
    return apply_matrices(x, rows, columns)


def max_pool(x: jax.Array, window: int, stride: int, padding: int) -> jax.Array:
    """Take the maximum of windows; padding never is the maximum.

    Args:
        x: Images [B, H, W, C].
        window: Height and width of a window in pixels.
        stride: Distance between windows in pixels.
        padding: Pixels added on every side.

    Returns:
        Maxima [B, H', W', C] of the same dtype.
    """
    return nn.max_pool(
        x,
        window_shape=(window, window),
        strides=(stride, stride),
        padding=((padding, padding), (padding, padding)),
    )


def avg_pool(
    x: jax.Array,
    window: int,
    stride: int,
    padding: int = 0,
    count_include_pad: bool = True,
    ceil_mode: bool = False,
) -> jax.Array:
    """Average over windows, like PyTorch's AvgPool2d.

    Args:
        x: Images [B, H, W, C].
        window: Height and width of a window in pixels.
        stride: Distance between windows in pixels.
        padding: Zeros added on every side.
        count_include_pad: Whether averages include the padding.
        ceil_mode: Whether partial windows at the bottom and right count as windows.

    Returns:
        Averages [B, H', W', C] of the same dtype.
    """
    pads = [(padding, padding)] * 2
    if ceil_mode:
        pads = [(padding, padding + (-(n + 2 * padding - window)) % stride) for n in x.shape[1:3]]
    return nn.avg_pool(
        x, (window, window), (stride, stride), pads, count_include_pad=count_include_pad
    )
