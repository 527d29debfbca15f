"""Augmentation, with MMSegmentation's distributions.

Images are uint8, uint16 or float32 [H, W, C], labels uint8 [H, W]. Scale, angle and crop are chosen
first, in the coordinates of the resized image, which is never made: only the pixels of the crop are
computed, and only they are flipped, distorted and padded. All randomness comes from a NumPy
Generator, so a sample is a function of its seed. No function changes its arguments.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np

from jaxseg.constants import IGNORE
from jaxseg.data.augment.photometric import equalize, photometric
from jaxseg.errors import DataError

CROP_TRIES = 10
MAX_HOLES = 3  # rectangles of cutout
HOLE_SIDES = (1 / 16, 1 / 4)  # their sides, relative to the crop's
# Numbers of channels that OpenCV resamples at once; it is less exact for 2 and refuses or spoils
# more than 4.
CV2_CHANNELS = (1, 3, 4)

SampleFn = Callable[[], tuple[np.ndarray, np.ndarray]]  # returns another image and its label


# --- Sizes ---


def rescaled_size(size: tuple[int, int], target: Sequence[int]) -> tuple[int, int]:
    """Return the largest (H, W) of the same aspect ratio that fits into `target`.

    Args:
        size: (H, W) in pixels.
        target: (long, short) side in pixels, in any order; (0, 0) for the same size.
    """
    if not any(target):
        return size[0], size[1]
    scale = min(max(target) / max(size), min(target) / min(size))
    height, width = (max(int(side * scale + 0.5), 1) for side in size)
    return height, width


def resize_image(image: np.ndarray, target: Sequence[int]) -> np.ndarray:
    """Resize an image bilinearly, keeping its aspect ratio.

    Args:
        image: [H, W, C] or [H, W].
        target: (long, short) side in pixels; see `rescaled_size`.

    Returns:
        The image [h, w, C] or [h, w] of the same dtype.
    """
    return _resize(image, rescaled_size(image.shape[:2], target), cv2.INTER_LINEAR)


def scaled_views(
    image: np.ndarray, target: Sequence[int], ratios: Sequence[float]
) -> tuple[np.ndarray, ...]:
    """Resize an image to several test-time scales, each from the image itself.

    Args:
        image: [H, W, C].
        target: (long, short) side in pixels at ratio 1, as in `resize_image`; (0, 0) for the
            image's own size.
        ratios: As in MMSegmentation, a ratio multiplies the target, whose sides are cut to whole
            numbers, and the image is made as large as fits into it; without a target it multiplies
            the image's own sides.

    Returns:
        One image [h, w, C] of the same dtype for each ratio; integers are rounded.
    """
    return tuple(
        _resize(image, _scaled_size(image.shape[:2], target, ratio), cv2.INTER_LINEAR)
        for ratio in ratios
    )


def _scaled_size(size: tuple[int, int], target: Sequence[int], ratio: float) -> tuple[int, int]:
    if any(target):
        return rescaled_size(size, [max(int(side * ratio), 1) for side in target])
    height, width = (max(int(side * ratio + 0.5), 1) for side in size)
    return height, width


def _resize(array: np.ndarray, size: tuple[int, int], interpolation: int) -> np.ndarray:
    if array.shape[:2] == size:
        return array
    return _by_channels(
        lambda part: cv2.resize(part, size[::-1], interpolation=interpolation), array
    )


def _by_channels(function: Callable[[np.ndarray], np.ndarray], image: np.ndarray) -> np.ndarray:
    """Apply `function` to an image [H, W, C] (or [H, W]), channel by channel where OpenCV must."""
    if image.ndim == 2:
        return function(image)
    if image.shape[2] in CV2_CHANNELS:
        out = function(image)
        return out.reshape(*out.shape[:2], -1)  # OpenCV drops a channel axis of 1
    return np.stack(
        [function(np.ascontiguousarray(channel)) for channel in np.moveaxis(image, 2, 0)], -1
    )


# --- Crop geometry ---


@dataclasses.dataclass(frozen=True)
class CropWindow:
    """A crop of an image after it is resized and rotated.

    Attributes:
        size: (H, W) that the image is resized to.
        corner: (row, column) of the crop in the resized image.
        shape: (h, w) of the crop.
        angle: Degrees, counter-clockwise, by which the resized image is rotated about the centre of
            the crop.
    """

    size: tuple[int, int]
    corner: tuple[int, int]
    shape: tuple[int, int]
    angle: float = 0.0


def extract_label(label: np.ndarray, window: CropWindow) -> np.ndarray:
    """Return the label in a window, by nearest neighbour.

    It has the same pixels as cv2.resize followed by a crop. Rotated, it is 255 outside the image.

    Args:
        label: uint8 [H, W].
        window: The window.

    Returns:
        uint8 [h, w].
    """
    if window.angle:
        return _warp(label, window, cv2.INTER_NEAREST, IGNORE)
    rows, columns = (
        # OpenCV multiplies by the inverse of the scale; dividing by the scale sometimes rounds
        # differently.
        np.minimum(
            (np.arange(first, first + count) * (1 / (resized / side))).astype(np.int64), side - 1
        )
        for first, count, resized, side in zip(
            window.corner, window.shape, window.size, label.shape
        )
    )
    return label.take(rows, 0).take(columns, 1)


def extract_image(image: np.ndarray, window: CropWindow) -> np.ndarray:
    """Return the image in a window, bilinearly.

    Except for rounding it equals cv2.resize followed by a crop; OpenCV before 5 also rounds
    positions, to 1/32 pixel. Rotated, it is 0 outside the image. Where nothing is resized or
    rotated, the result is a view of `image`.

    Args:
        image: [H, W, C].
        window: The window.

    Returns:
        [h, w, C] of the same dtype.
    """
    if window.angle or window.size != image.shape[:2]:
        return _warp(image, window, cv2.INTER_LINEAR, 0)
    (top, left), (height, width) = window.corner, window.shape
    return image[top : top + height, left : left + width]


def _warp(array: np.ndarray, window: CropWindow, interpolation: int, fill: int) -> np.ndarray:
    """Return an image or label in a window; outside is `fill` if it is rotated, else its border."""
    matrix, (height, width) = _matrix(array.shape[:2], window), window.shape
    corners = matrix @ np.array(
        [[0, width - 1, 0, width - 1], [0, 0, height - 1, height - 1], [1, 1, 1, 1]]
    )
    # Only the pixels that are needed: the rest may not be decoded yet, and OpenCV computes with
    # float32 and short integers.
    left, top = np.maximum(np.floor(corners.min(1)).astype(int) - 1, 0).tolist()
    right, bottom = np.minimum(np.ceil(corners.max(1)).astype(int) + 2, array.shape[1::-1]).tolist()
    matrix = matrix - [[0, 0, left], [0, 0, top]]
    options: dict[str, Any] = {
        "flags": interpolation | cv2.WARP_INVERSE_MAP,
        "borderMode": cv2.BORDER_CONSTANT if window.angle else cv2.BORDER_REPLICATE,
        "borderValue": fill,
    }
    return _by_channels(
        lambda part: cv2.warpAffine(part, matrix, (width, height), **options),
        array[top:bottom, left:right],
    )


def _matrix(size: tuple[int, int], window: CropWindow) -> np.ndarray:
    """Return the affine map from the window to the image of `size`: float64 [2, 3].

    It maps (column, row, 1) to (column, row), where coordinates are those of pixel centres.
    """
    shift = np.array([[1, 0, window.corner[1]], [0, 1, window.corner[0]], [0, 0, 1]], np.float64)
    if window.angle:
        row, column = (first + (side - 1) / 2 for first, side in zip(window.corner, window.shape))
        shift[:2] = cv2.getRotationMatrix2D((column, row), -window.angle, 1.0) @ shift
    down, across = (side / resized for side, resized in zip(size, window.size))
    return np.array([[across, 0, across / 2 - 0.5], [0, down, down / 2 - 0.5]]) @ shift


# --- Random crops ---


def random_target(
    rng: np.random.Generator,
    size: tuple[int, int],
    target: Sequence[int],
    ratio_range: Sequence[float],
) -> tuple[int, int]:
    """Return (long, short) side in pixels times one random ratio.

    Args:
        rng: Source of randomness.
        size: (H, W) of the image, in place of a target of (0, 0).
        target: (long, short) side in pixels.
        ratio_range: (lowest, highest) of a uniform distribution.
    """
    target = target if any(target) else (max(size), min(size))
    low, high = ratio_range
    ratio = rng.random() * (high - low) + low
    return max(int(target[0] * ratio), 1), max(int(target[1] * ratio), 1)


def random_window(
    rng: np.random.Generator,
    label: np.ndarray,
    size: tuple[int, int],
    crop_size: Sequence[int],
    cat_max_ratio: float = 1.0,
    angle: float = 0.0,
    pixel: tuple[int, int] | None = None,
) -> tuple[CropWindow, np.ndarray]:
    """Return a window at a uniformly random place, and the label in it.

    Args:
        rng: Source of randomness.
        label: uint8 [H, W].
        size: (H, W) that the image is resized to.
        crop_size: Largest (h, w) of the window.
        cat_max_ratio: If it is below 1, up to ten more windows are drawn until one holds two
            classes or more and none of them fills this share of its pixels (255 not counted); the
            last one is taken as it is.
        angle: Rotation in degrees.
        pixel: (row, column) of `label` that the window must contain, though a rotation may move it
            out of a corner.
    """
    height, width = (min(sides) for sides in zip(crop_size, size))
    shape = (height, width)
    margins = [whole - side for whole, side in zip(size, shape)]
    if pixel is None:
        ranges = [(0, margin) for margin in margins]
    else:
        moved = [int((at + 0.5) * new / old) for at, new, old in zip(pixel, size, label.shape)]
        ranges = [
            (max(at - side + 1, 0), min(at, margin))
            for at, side, margin in zip(moved, shape, margins)
        ]

    def draw() -> tuple[CropWindow, np.ndarray]:
        row, column = (int(rng.integers(low, high + 1)) for low, high in ranges)
        window = CropWindow(size, (row, column), shape, angle)
        return window, extract_label(label, window)

    window, seen = draw()
    if cat_max_ratio < 1 and any(margins):
        for _ in range(CROP_TRIES):
            if is_mixed(seen, cat_max_ratio):
                break
            window, seen = draw()
    return window, seen


def is_mixed(label: np.ndarray, cat_max_ratio: float) -> bool:
    """Return whether a label has two classes or more and none fills too much of it.

    Args:
        label: uint8 [H, W].
        cat_max_ratio: The share that no class may reach, of the pixels that are not 255.
    """
    counts = _count(label)
    return bool(np.count_nonzero(counts) > 1 and counts.max() / counts.sum() < cat_max_ratio)


def class_pixel(rng: np.random.Generator, label: np.ndarray) -> tuple[int, int] | None:
    """Return a random pixel of a random class of a label, every class in it equally likely.

    Args:
        rng: Source of randomness.
        label: uint8 [H, W].

    Returns:
        (row, column), or None if all of the label is 255.
    """
    present = np.flatnonzero(_count(label))
    if not len(present):
        return None
    pixels = np.flatnonzero(label == present[rng.integers(len(present))])
    return divmod(int(pixels[rng.integers(len(pixels))]), label.shape[1])


def _count(label: np.ndarray) -> np.ndarray:
    """Return the number of pixels of each class: float32 [255], 255 left out."""
    return cv2.calcHist([label], [0], None, [IGNORE], [0, IGNORE]).ravel()


# --- Changes to a crop ---


def flip(array: np.ndarray, axis: int) -> np.ndarray:
    """Flip an image or label.

    Args:
        array: [H, W, C] or [H, W].
        axis: 0 for upside down, 1 for left to right.
    """
    return _by_channels(lambda part: cv2.flip(part, axis), array)


def cutout(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Set one to three rectangles of an image to 0 (arXiv:1708.04552).

    As in MMSegmentation the label stays. The top left corner is anywhere in the image, whose border
    cuts the rectangle; sides are 1/16 to 1/4 of the image's.

    Args:
        rng: Source of randomness.
        image: [H, W, C].

    Returns:
        A changed copy.
    """
    image = image.copy()
    for _ in range(int(rng.integers(1, MAX_HOLES + 1))):
        top, left = (int(rng.integers(side)) for side in image.shape[:2])
        height, width = (max(int(side * rng.uniform(*HOLE_SIDES)), 1) for side in image.shape[:2])
        image[top : top + height, left : left + width] = 0
    return image


def pad(image: np.ndarray, label: np.ndarray, size: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Pad an image with 0 and its label with 255, at the bottom and the right.

    Args:
        image: [h, w, C].
        label: uint8 [h, w].
        size: (H, W) to pad to, at least (h, w).

    Returns:
        The image [H, W, C] and the label [H, W].
    """
    height, width = label.shape
    if (height, width) == tuple(size):
        return image, label
    padded = np.zeros((*size, *image.shape[2:]), image.dtype)
    ignored = np.full(size, IGNORE, label.dtype)
    padded[:height, :width], ignored[:height, :width] = image, label
    return padded, ignored


# --- Augment ---


@dataclasses.dataclass(frozen=True)
class Augment:
    """The augmentation of a training sample; by default it only crops.

    Its fields are those of `DatasetConfig`.

    Attributes:
        crop_size: (height, width) of a crop in pixels.
        resize: (long, short) side in pixels before the random ratio; (0, 0) for the image's own
            size.
        ratio_range: (lowest, highest) ratio.
        cat_max_ratio: Largest share of a crop that one class may fill; see `random_window`.
        flip: Probability of flipping left to right.
        photometric: Whether colours are distorted; see `photometric`.
        vertical_flip: Probability of flipping upside down.
        rotate: Probability of a rotation. What comes from outside the image is 0 and 255, before
            colours change.
        rotate_degrees: Largest angle; it is uniform in +-rotate_degrees.
        cutout: Probability of `cutout`.
        clahe: Probability of `equalize`; like `photometric` it sees the crop only.
        mosaic: Probability of a mosaic of four samples.
        class_crop: Probability that the crop is placed around a random pixel of a class drawn
            evenly from those in the label, at the cost of `cat_max_ratio` where both cannot be had.
    """

    crop_size: tuple[int, int]
    resize: tuple[int, int] = (0, 0)
    ratio_range: tuple[float, float] = (1.0, 1.0)
    cat_max_ratio: float = 1.0
    flip: float = 0.0
    photometric: bool = False
    vertical_flip: float = 0.0
    rotate: float = 0.0
    rotate_degrees: float = 10.0
    cutout: float = 0.0
    clahe: float = 0.0
    mosaic: float = 0.0
    class_crop: float = 0.0

    def __call__(
        self,
        rng: np.random.Generator,
        image: np.ndarray,
        label: np.ndarray,
        draw: SampleFn | None = None,
    ) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
        """Augment a sample.

        Args:
            rng: Source of randomness.
            image: [H, W, C].
            label: uint8 [H, W].
            draw: Returns another sample, for mosaic only; it should be drawn with `rng` too.

        Returns:
            Image [*crop_size, C] of the same dtype, label uint8 [*crop_size], and (height, width)
            before padding.

        Raises:
            DataError: The images are not of a kind that an operation works on.
        """
        if bernoulli(rng, self.mosaic):
            return self._mosaic(rng, image, label, draw)
        image, label = self._crop(rng, image, label, self.crop_size)
        height, width = label.shape
        return *pad(image, label, self.crop_size), (height, width)

    def _crop(
        self,
        rng: np.random.Generator,
        image: np.ndarray,
        label: np.ndarray,
        crop_size: Sequence[int],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Apply everything but mosaic and padding.

        The resulting image and label have the same size, at most `crop_size`.
        """
        old_height, old_width = label.shape
        target = random_target(rng, (old_height, old_width), self.resize, self.ratio_range)
        size = rescaled_size((old_height, old_width), target)
        angle = 0.0
        if bernoulli(rng, self.rotate):
            angle = rng.uniform(-self.rotate_degrees, self.rotate_degrees)
        pixel = class_pixel(rng, label) if bernoulli(rng, self.class_crop) else None
        window, label = random_window(rng, label, size, crop_size, self.cat_max_ratio, angle, pixel)
        image = extract_image(image, window)
        for axis, probability in ((1, self.flip), (0, self.vertical_flip)):
            if bernoulli(rng, probability):
                image, label = flip(image, axis), flip(label, axis)
        if bernoulli(rng, self.clahe):
            image = equalize(image)
        if self.photometric:
            image = photometric(rng, image)
        if bernoulli(rng, self.cutout):
            image = cutout(rng, image)
        return image, label

    def _mosaic(
        self,
        rng: np.random.Generator,
        image: np.ndarray,
        label: np.ndarray,
        draw: SampleFn | None,
    ) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
        """Join four crops that meet at a random point of the middle half.

        This sample is at the top left. Each is augmented by itself. Where an image is smaller than
        its part, the rest is 0 and 255. That can be anywhere, so it does not count as padding and
        the size is that of the crop.
        """
        if draw is None:
            raise DataError(
                "config.dataset.mosaic needs other samples, but none can be drawn here",
                field="dataset.mosaic",
                hint="set it to 0",
            )
        bounds = []
        for side in self.crop_size:
            quarter = max(side // 4, 1)
            bounds.append((0, int(rng.integers(quarter, side - quarter + 1)), side))
        pixels: np.ndarray | None = None
        classes = np.empty(self.crop_size, np.uint8)
        for number in range(4):
            if number:
                image, label = draw()
            (top, bottom), (left, right) = (
                at[i : i + 2] for at, i in zip(bounds, divmod(number, 2))
            )
            size = (bottom - top, right - left)
            part, seen = pad(*self._crop(rng, image, label, size), size)
            if pixels is None:
                pixels = np.empty((*self.crop_size, part.shape[2]), part.dtype)
            if part.dtype != pixels.dtype or part.shape[2] != pixels.shape[2]:
                raise DataError(
                    f"config.dataset.mosaic joins images of one kind, but one is {pixels.dtype} of "
                    f"{pixels.shape[2]} channels and another {part.dtype} of {part.shape[2]}",
                    field="dataset.mosaic",
                    hint="convert them, or set it to 0",
                )
            pixels[top:bottom, left:right], classes[top:bottom, left:right] = part, seen
        assert pixels is not None  # of the first part
        return pixels, classes, self.crop_size


def bernoulli(rng: np.random.Generator, probability: float) -> bool:
    """Return True with this probability; nothing is drawn if it is 0."""
    return probability > 0 and rng.random() < probability
