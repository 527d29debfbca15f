"""Colours of a training image: random distortion, and histogram equalisation (CLAHE)."""

import cv2
import numpy as np

from jaxseg.errors import DataError

BRIGHTNESS = 32.0
BRIGHTNESS_SHARE = 1 / 8  # of the largest value, where values are not 0..255 RGB: 32 of 256
CONTRAST = SATURATION = (0.5, 1.5)
HUE = 18  # of OpenCV's 180
CLIP_LIMIT, TILES = 40.0, (8, 8)  # MMSegmentation's CLAHE

_LEVELS = np.arange(256, dtype=np.uint8)  # 8-bit values are changed by a table of 256 levels


def photometric(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Distort the colours of an image; each change has probability one half.

    RGB of 8 bits as in MMSegmentation: brightness by up to 32, contrast and saturation by a factor
    of 0.5 to 1.5, hue by up to 18 of 180 (half-open); contrast comes before saturation and hue or
    after them, at even odds. Any other image: brightness by up to 1/8 of its largest value, then
    contrast by a factor of 0.5 to 1.5, all channels alike, clipped to the range of an integer
    dtype; float32 is not clipped. Values are truncated, not rounded.

    Args:
        rng: Source of randomness.
        image: uint8, uint16 or float32 [H, W, C].
    """
    if image.dtype == np.uint8 and image.shape[2] == 3:
        return _distort_rgb(rng, image)
    shift = 0.0
    if rng.random() < 0.5:
        shift = rng.uniform(-BRIGHTNESS_SHARE, BRIGHTNESS_SHARE) * float(image.max())
    contrast = rng.uniform(*CONTRAST) if rng.random() < 0.5 else 1.0
    return _linear(image, contrast, contrast * shift) if shift or contrast != 1 else image


def _distort_rgb(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Distort an image uint8 [H, W, 3]."""
    contrast_first = rng.random() < 0.5
    levels = _LEVELS
    if rng.random() < 0.5:
        levels = _linear(levels, 1.0, rng.uniform(-BRIGHTNESS, BRIGHTNESS))
    contrast = rng.uniform(*CONTRAST) if rng.random() < 0.5 else None
    if contrast is not None and contrast_first:
        levels = _linear(levels, contrast, 0.0)
    image = image if levels is _LEVELS else cv2.LUT(image, levels)
    if rng.random() < 0.5:
        image = _through_hsv(image, 1, _linear(_LEVELS, rng.uniform(*SATURATION), 0.0))
    if rng.random() < 0.5:
        turned = (_LEVELS.astype(np.int32) + int(rng.integers(-HUE, HUE))) % 180
        image = _through_hsv(image, 0, turned.astype(np.uint8))
    if contrast is not None and not contrast_first:
        image = cv2.LUT(image, _linear(_LEVELS, contrast, 0.0))
    return image


def _linear(values: np.ndarray, alpha: float, beta: float) -> np.ndarray:
    """Return values * alpha + beta in float32, then clipped and cut to an integer dtype."""
    out = values.astype(np.float32)
    out *= np.float32(alpha)
    out += np.float32(beta)
    if values.dtype == np.float32:
        return out
    return np.clip(out, 0, np.iinfo(values.dtype).max, out=out).astype(values.dtype)


def _through_hsv(image: np.ndarray, channel: int, table: np.ndarray) -> np.ndarray:
    """Map hue (channel 0, 0..179) or saturation (1) of an RGB image by a table of 256 levels."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    cv2.insertChannel(cv2.LUT(cv2.extractChannel(hsv, channel), table), hsv, channel)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def equalize(image: np.ndarray) -> np.ndarray:
    """Equalise every channel of an image uint8 or uint16 [H, W, C] by CLAHE.

    The clip limit is 40, and there are 8 x 8 tiles.

    Raises:
        DataError: The image is float32.
    """
    if image.dtype not in (np.uint8, np.uint16):
        raise DataError(
            f"config.dataset.clahe works on images of 8 or 16 bits, but these are {image.dtype}",
            field="dataset.clahe",
            hint="set it to 0",
        )
    clahe = cv2.createCLAHE(CLIP_LIMIT, TILES)
    return np.stack(
        [clahe.apply(np.ascontiguousarray(channel)) for channel in np.moveaxis(image, 2, 0)], -1
    )
