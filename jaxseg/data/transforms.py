"""Augmentation on numpy images uint8 [H, W, 3] RGB and labels uint8 [H, W], with MMSegmentation's distributions.

Scale, crop, flip, distort colours, pad. Every random function takes a numpy Generator, so a sample is a function of its
seed. Colours are distorted after cropping: of pixels that do not survive none is touched but by the resize.
"""

import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np

from jaxseg.data.datasets import IGNORE

CROP_TRIES = 10
BRIGHTNESS = 32.0
CONTRAST = SATURATION = (0.5, 1.5)
HUE = 18  # of OpenCV's 180

_LEVELS = np.arange(256, dtype=np.uint8)


# --- Sizes ------------------------------------------------------------------------------------------------------------


def rescaled_size(size: tuple[int, int], target: Sequence[int]) -> tuple[int, int]:
    """(H, W) made as large as fits, ratio kept, into `target`: (long, short) side in any order; (0, 0) leaves it."""
    if not any(target):
        return tuple(size)
    scale = min(max(target) / max(size), min(target) / min(size))
    return tuple(max(int(side * scale + 0.5), 1) for side in size)


def resize_image(image: np.ndarray, target: Sequence[int]) -> np.ndarray:
    """Image [H, W, C] (or [H, W]) resized bilinearly to `rescaled_size`."""
    return _resize(image, rescaled_size(image.shape[:2], target), cv2.INTER_LINEAR)


def resize_label(label: np.ndarray, target: Sequence[int]) -> np.ndarray:
    """Label uint8 [H, W] resized to `rescaled_size` by nearest neighbour."""
    return _resize(label, rescaled_size(label.shape[:2], target), cv2.INTER_NEAREST)


def _resize(array: np.ndarray, size: tuple[int, int], interpolation: int) -> np.ndarray:
    if array.shape[:2] == size:
        return array
    resized = cv2.resize(array, size[::-1], interpolation=interpolation)
    return resized.reshape(*size, *array.shape[2:])  # OpenCV drops a channel axis of 1


# --- Random transforms ------------------------------------------------------------------------------------------------


def random_target(
    rng: np.random.Generator, size: tuple[int, int], target: Sequence[int], ratio_range: Sequence[float]
) -> tuple[int, int]:
    """(long, short) times one ratio uniform in the range; (0, 0) stands for the image's own size (H, W)."""
    target = target if any(target) else (max(size), min(size))
    low, high = ratio_range
    ratio = rng.random() * (high - low) + low
    return max(int(target[0] * ratio), 1), max(int(target[1] * ratio), 1)


def random_crop(
    rng: np.random.Generator, label: np.ndarray, crop_size: Sequence[int], cat_max_ratio: float = 1.0
) -> tuple[slice, slice]:
    """(rows, columns) of a crop of at most `crop_size`.

    With cat_max_ratio < 1, up to ten more boxes are tried until one holds two classes or more and none of them fills
    that share of its pixels (255 not counted); the last one is taken as it is.
    """
    margins = [max(side - crop, 0) for side, crop in zip(label.shape, crop_size, strict=True)]

    def draw() -> tuple[slice, slice]:
        top, left = (int(rng.integers(margin + 1)) for margin in margins)
        return slice(top, top + crop_size[0]), slice(left, left + crop_size[1])

    box = draw()
    if cat_max_ratio < 1 and any(margins):
        for _ in range(CROP_TRIES):
            if is_mixed(label[box], cat_max_ratio):
                break
            box = draw()
    return box


def is_mixed(label: np.ndarray, cat_max_ratio: float) -> bool:
    """Whether a label uint8 [H, W] holds two classes or more, none filling `cat_max_ratio` of the pixels not 255."""
    counts = cv2.calcHist([label], [0], None, [IGNORE], [0, IGNORE])  # 255 is left out
    return np.count_nonzero(counts) > 1 and counts.max() / counts.sum() < cat_max_ratio


def photometric(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Brightness, contrast, saturation and hue of an RGB image uint8 [H, W, 3], each changed with probability one half.

    Contrast comes before saturation and hue or after them, at even odds. Values are cut, not rounded, to uint8.
    """
    contrast_first = rng.random() < 0.5
    levels = _LEVELS
    if rng.random() < 0.5:
        levels = _linear(levels, 1.0, rng.uniform(-BRIGHTNESS, BRIGHTNESS))
    contrast = rng.uniform(*CONTRAST) if rng.random() < 0.5 else None
    if contrast is not None and contrast_first:
        levels = _linear(levels, contrast, 0.0)
    image = image if levels is _LEVELS else cv2.LUT(image, levels)
    if rng.random() < 0.5:
        image = _through_hsv(image, _LEVELS, _linear(_LEVELS, rng.uniform(*SATURATION), 0.0))
    if rng.random() < 0.5:
        turned = (_LEVELS.astype(np.int32) + int(rng.integers(-HUE, HUE))) % 180
        image = _through_hsv(image, turned.astype(np.uint8), _LEVELS)
    if contrast is not None and not contrast_first:
        image = cv2.LUT(image, _linear(_LEVELS, contrast, 0.0))
    return image


def _linear(levels: np.ndarray, alpha: float, beta: float) -> np.ndarray:
    """levels * alpha + beta in float32, clipped and cut to uint8: on 256 levels instead of on every pixel."""
    return np.clip(levels.astype(np.float32) * np.float32(alpha) + np.float32(beta), 0, 255).astype(np.uint8)


def _through_hsv(image: np.ndarray, hue: np.ndarray, saturation: np.ndarray) -> np.ndarray:
    """Map hue (0..179) and saturation of an RGB image by tables of 256 levels."""
    table = np.stack([hue, saturation, _LEVELS], -1)[None]
    return cv2.cvtColor(cv2.LUT(cv2.cvtColor(image, cv2.COLOR_RGB2HSV), table), cv2.COLOR_HSV2RGB)


def pad(image: np.ndarray, label: np.ndarray, size: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Both at `size`, filled at the bottom and the right with 0 and 255."""
    height, width = label.shape
    if (height, width) == tuple(size):
        return image, label
    padded = np.zeros((*size, *image.shape[2:]), image.dtype)
    ignored = np.full(size, IGNORE, label.dtype)
    padded[:height, :width], ignored[:height, :width] = image, label
    return padded, ignored


@dataclasses.dataclass(frozen=True)
class Augment:
    """What training does to a sample; the fields are those of config.dataset. By default only a crop."""

    crop_size: tuple[int, int]
    resize: tuple[int, int] = (0, 0)
    ratio_range: tuple[float, float] = (1.0, 1.0)
    cat_max_ratio: float = 1.0
    flip: float = 0.0
    photometric: bool = False

    def __call__(
        self, rng: np.random.Generator, image: np.ndarray, label: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
        """(image uint8 [*crop_size, 3], label uint8 [*crop_size], size (H, W) before padding)."""
        target = random_target(rng, label.shape, self.resize, self.ratio_range)
        label = resize_label(label, target)
        box = random_crop(rng, label, self.crop_size, self.cat_max_ratio)
        label, image = label[box], resize_image(image, target)[box]
        if rng.random() < self.flip:
            label, image = label[:, ::-1], image[:, ::-1]
        if self.photometric:
            image = photometric(rng, np.ascontiguousarray(image))
        return *pad(image, label, self.crop_size), label.shape
