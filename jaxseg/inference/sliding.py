"""Windows over images of any size: cut out, called in batches of one shape, and averaged where they overlap."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


def window_starts(length: int, crop: int, stride: int) -> list[int]:
    """Where windows start along one axis: every stride, the last shifted back inside; [0] if the image is smaller."""
    count = max(length - crop + stride - 1, 0) // stride + 1
    return [max(min(i * stride, length - crop), 0) for i in range(count)]


class _Window(NamedTuple):
    pixels: np.ndarray  # [wh, ww, C]
    corner: tuple[int, int]
    size: tuple[int, int]  # of its image
    first: bool
    last: bool


def _windows(
    images: Iterable[np.ndarray], crop: Sequence[int], stride: Sequence[int]
) -> Iterator[_Window]:
    for image in images:
        size = image.shape[:2]
        corners = list(itertools.product(*map(window_starts, size, crop, stride)))
        for i, (y, x) in enumerate(corners):
            pixels = image[y : y + crop[0], x : x + crop[1]]
            yield _Window(pixels, (y, x), size, i == 0, i == len(corners) - 1)


def _chunks(windows: Iterable[_Window], batch: int) -> Iterator[list[_Window]]:
    """Runs of at most `batch` windows of one shape."""
    for _, run in itertools.groupby(windows, key=lambda window: window.pixels.shape):
        while chunk := list(itertools.islice(run, batch)):
            yield chunk


def _coverage(length: int, crop: int, stride: int) -> np.ndarray:
    """How many windows see each position along one axis: [length] float32."""
    count = np.zeros(length, np.float32)
    for start in window_starts(length, crop, stride):
        count[start : start + crop] += 1
    return count


@partial(jax.jit, donate_argnums=0)
def _add(total: jax.Array, logits: jax.Array, n: int, y: int, x: int) -> jax.Array:
    """total [h, w, K] plus logits[n] [wh, ww, K] at (y, x); indices are traced, so one compilation per shape."""
    window = jax.lax.dynamic_index_in_dim(logits, n, keepdims=False)
    here = jax.lax.dynamic_slice(total, (y, x, 0), window.shape)
    return jax.lax.dynamic_update_slice(total, here + window, (y, x, 0))


@partial(jax.jit, donate_argnums=0)
def _divide(total: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    return total / (rows[:, None] * columns[None, :])[..., None]


def slide(
    call: Callable,
    images: Iterable[np.ndarray],
    crop_size: Sequence[int],
    stride: Sequence[int],
    batch: int = 1,
) -> Iterator[jax.Array]:
    """Logits [h, w, K] of each image [h, w, C], in order: the mean over the windows that see a pixel.

    call: windows [batch, wh, ww, C] numpy -> logits [batch, wh, ww, K]. Its shapes depend on the crop alone (or on the
    image where that is smaller), never on the image sizes or the number of windows: windows of consecutive images share
    a call, and the last call repeats a window to fill up. One image's sum is held at a time.
    """
    total = None
    for chunk in _chunks(_windows(images, crop_size, stride), batch):
        pixels = [window.pixels for window in chunk]
        logits = call(np.stack(pixels + pixels[-1:] * (batch - len(chunk))))
        for n, window in enumerate(chunk):
            if window.first:
                total = jnp.zeros((*window.size, logits.shape[-1]), jnp.float32)
            total = _add(total, logits, n, *window.corner)
            if window.last:
                yield _divide(total, *map(_coverage, window.size, crop_size, stride))
