"""Class scores from sliding windows.

Windows are cut from images of any size, run in batches of one shape, and averaged where they
overlap.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.inference.settings import TestSettings
from jaxseg.inference.whole import softmax
from jaxseg.ops import resize_bilinear

Item = tuple[Sequence[np.ndarray], tuple[int, int]]  # (image at each scale, size of its scores)


def window_starts(length: int, crop: int, stride: int) -> list[int]:
    """Return the start of each window along one axis.

    Args:
        length: Length of the image in pixels.
        crop: Length of a window in pixels.
        stride: Distance between windows in pixels.

    Returns:
        Multiples of the stride, with the last window moved back inside the image; [0] if the image
        is smaller than a window.
    """
    count = max(length - crop + stride - 1, 0) // stride + 1
    return [max(min(i * stride, length - crop), 0) for i in range(count)]


class _Window(NamedTuple):
    pixels: np.ndarray  # [wh, ww, C]
    corner: tuple[int, int]
    size: tuple[int, int]  # of its image
    first: bool
    last: bool


def _windows(
    images: Iterable[np.ndarray], crop: tuple[int, int], stride: tuple[int, int]
) -> Iterator[_Window]:
    for image in images:
        height, width = image.shape[:2]
        rows = window_starts(height, crop[0], stride[0])
        columns = window_starts(width, crop[1], stride[1])
        corners = list(itertools.product(rows, columns))
        for i, (y, x) in enumerate(corners):
            pixels = image[y : y + crop[0], x : x + crop[1]]
            yield _Window(pixels, (y, x), (height, width), i == 0, i == len(corners) - 1)


def _chunks(windows: Iterable[_Window], batch: int) -> Iterator[list[_Window]]:
    """Group consecutive windows of one shape into lists of at most `batch`."""
    for _, run in itertools.groupby(windows, key=lambda window: window.pixels.shape):
        while chunk := list(itertools.islice(run, batch)):
            yield chunk


def _coverage(length: int, crop: int, stride: int) -> np.ndarray:
    """Count the windows over each position along one axis: float32 [length]."""
    count = np.zeros(length, np.float32)
    for start in window_starts(length, crop, stride):
        count[start : start + crop] += 1
    return count


@partial(jax.jit, donate_argnums=0)
def _add(total: jax.Array, logits: jax.Array, n: int, y: int, x: int) -> jax.Array:
    """Add logits[n] [wh, ww, K] to `total` [h, w, K] at (y, x).

    Indices are traced, so that each shape compiles once.
    """
    window = jax.lax.dynamic_index_in_dim(logits, n, keepdims=False)
    here = jax.lax.dynamic_slice(total, (y, x, 0), window.shape)
    return jax.lax.dynamic_update_slice(total, here + window, (y, x, 0))


@partial(jax.jit, donate_argnums=0)
def _divide(total: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    return total / (rows[:, None] * columns[None, :])[..., None]


def slide(
    call: Callable[[np.ndarray], jax.Array],
    images: Iterable[np.ndarray],
    crop_size: tuple[int, int],
    stride: tuple[int, int],
    batch: int = 1,
) -> Iterator[jax.Array]:
    """Average the logits of overlapping windows.

    Windows of consecutive images share a batch, and the last batch is filled with copies of a
    window. The shapes that `call` receives therefore depend only on the window size (or the size of
    smaller images), not on the number of windows. Only one image is summed at a time.

    Args:
        call: Maps windows [batch, wh, ww, C] to logits [batch, wh, ww, K].
        images: uint8, uint16 or float32 [h, w, C], of any sizes.
        crop_size: (height, width) of a window in pixels.
        stride: (vertical, horizontal) distance between windows in pixels.
        batch: Number of windows per call.

    Yields:
        Logits float32 [h, w, K] of each image, in order: the mean over the windows that cover a
        pixel.
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


@partial(jax.jit, static_argnames=("size", "align_corners", "averaged", "mirrored"))
def _finish(
    logits: jax.Array,
    *,
    size: tuple[int, int],
    align_corners: bool,
    averaged: bool,
    mirrored: bool,
) -> jax.Array:
    """Turn the logits [h, w, K] of one forward pass into scores [H, W, K] to average."""
    scores = resize_bilinear(logits[None], size, align_corners)[0]
    scores = softmax(scores) if averaged else scores
    return scores[:, ::-1] if mirrored else scores


def predict_slide(
    call: Callable[[np.ndarray], jax.Array],
    settings: TestSettings,
    items: Iterable[Item],
    devices: int = 1,
) -> Iterator[jax.Array]:
    """Compute class scores of images from sliding windows.

    Args:
        call: See `slide`; it receives windows [devices * settings.batch_size, wh, ww, C].
        settings: Test-time settings.
        items: Pairs of the image [h, w, C] at each of `settings.scales` and the size (H, W) of its
            scores in pixels.
        devices: Number of devices that share a call.

    Yields:
        Scores float32 [H, W, K] of each image, in order, as `whole.predict` returns them.
    """
    sizes: deque[tuple[int, int]] = deque()

    def views() -> Iterator[np.ndarray]:
        for images, size in items:
            sizes.append(size)
            for _, view in zip(settings.scales, images, strict=True):
                yield view
                if settings.flip:
                    yield view[:, ::-1]

    total = None
    averaged = settings.num_views > 1
    batch = devices * settings.batch_size
    for i, logits in enumerate(slide(call, views(), settings.crop_size, settings.stride, batch)):
        view = i % settings.num_views
        scores = _finish(
            logits,
            size=sizes[0],
            align_corners=settings.align_corners,
            averaged=averaged,
            mirrored=settings.flip and view % 2 == 1,
        )
        total = scores if view == 0 else total + scores
        if view == settings.num_views - 1:
            sizes.popleft()
            yield total / settings.num_views if averaged else total
