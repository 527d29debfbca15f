"""Augmentation on images uint8, uint16 or float32 [H, W, C] and labels uint8 [H, W], with MMSegmentation's distributions.

Scale, angle and crop are chosen first, in the coordinates of the resized image, which is never made: only the pixels of
the crop are computed, and only they are flipped, distorted and padded. Everything random comes from a numpy Generator,
so a sample is a function of its seed. No function changes its arguments.
"""

import dataclasses
from collections.abc import Callable, Sequence

import cv2
import numpy as np

from jaxseg.constants import IGNORE
from jaxseg.data.augment.photometric import equalize, photometric
from jaxseg.errors import DataError

CROP_TRIES = 10
HOLES = 3  # cutout's rectangles, at most
HOLE_SIDES = (1 / 16, 1 / 4)  # of the crop's
TOGETHER = (
    1,
    3,
    4,
)  # channels that OpenCV resamples at once; it is less exact for 2 and refuses or spoils more than 4


Draw = Callable[[], tuple[np.ndarray, np.ndarray]]


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


def scaled_views(
    image: np.ndarray, target: Sequence[int], ratios: Sequence[float]
) -> tuple[np.ndarray, ...]:
    """An image at several test-time scales, each resized once, from the image itself, and of its dtype.

    Args:
        image: [H, W, C].
        target: (long, short) side at ratio 1, as in `resize_image`; (0, 0) for the image's own size.
        ratios: as in MMSegmentation a ratio multiplies the target, whose sides are cut to whole numbers, and the image is
            made as large as fits into it; without a target it multiplies the image's own sides.

    Returns:
        One image [h, w, C] a ratio; integers are rounded.
    """
    return tuple(
        _resize(image, _scaled_size(image.shape[:2], target, ratio), cv2.INTER_LINEAR)
        for ratio in ratios
    )


def _scaled_size(size: tuple[int, int], target: Sequence[int], ratio: float) -> tuple[int, int]:
    if any(target):
        return rescaled_size(size, [max(int(side * ratio), 1) for side in target])
    return tuple(max(int(side * ratio + 0.5), 1) for side in size)


def _resize(array: np.ndarray, size: tuple[int, int], interpolation: int) -> np.ndarray:
    if array.shape[:2] == size:
        return array
    return _by_channels(
        lambda part: cv2.resize(part, size[::-1], interpolation=interpolation), array
    )


def _by_channels(function: Callable[[np.ndarray], np.ndarray], image: np.ndarray) -> np.ndarray:
    """`function` of the whole image [H, W, C] (or [H, W]) where OpenCV can, else of every channel."""
    if image.ndim == 2:
        return function(image)
    if image.shape[2] in TOGETHER:
        out = function(image)
        return out.reshape(*out.shape[:2], -1)  # OpenCV drops a channel axis of 1
    return np.stack(
        [function(np.ascontiguousarray(channel)) for channel in np.moveaxis(image, 2, 0)], -1
    )


# --- What survives ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class View:
    """The pixels that survive of an image resized to `size` (H, W): a box of `shape` (h, w) at `corner` (row, column).

    The resized image is turned by `angle` degrees, counter-clockwise, about the middle of the box before.
    """

    size: tuple[int, int]
    corner: tuple[int, int]
    shape: tuple[int, int]
    angle: float = 0.0


def view_label(label: np.ndarray, view: View) -> np.ndarray:
    """Label uint8 [h, w] of a view: nearest neighbour, the very pixels of cv2.resize; turned: 255 outside of the image."""
    if view.angle:
        return _warp(label, view, cv2.INTER_NEAREST, IGNORE)
    rows, columns = (
        # OpenCV multiplies by the inverse of the scale; dividing by it would round otherwise now and then.
        np.minimum(
            (np.arange(first, first + count) * (1 / (wide / side))).astype(np.int64), side - 1
        )
        for first, count, wide, side in zip(view.corner, view.shape, view.size, label.shape)
    )
    return label.take(rows, 0).take(columns, 1)


def view_image(image: np.ndarray, view: View) -> np.ndarray:
    """Image [h, w, C] of a view, bilinear: that of cv2.resize but for rounding; turned: 0 outside of the image.

    OpenCV before 5 also rounds positions, to 1/32 pixel. A slice of `image` itself where nothing is resized or turned.
    """
    if view.angle or view.size != image.shape[:2]:
        return _warp(image, view, cv2.INTER_LINEAR, 0)
    (top, left), (height, width) = view.corner, view.shape
    return image[top : top + height, left : left + width]


def _warp(array: np.ndarray, view: View, interpolation: int, fill: int) -> np.ndarray:
    """What a view shows of an image or label; beyond the border is `fill` if it is turned, else the border goes on."""
    matrix, (height, width) = _matrix(array.shape[:2], view), view.shape
    corners = matrix @ np.array(
        [[0, width - 1, 0, width - 1], [0, 0, height - 1, height - 1], [1, 1, 1, 1]]
    )
    # Not the whole image, as it may not be decoded yet, and as OpenCV computes with float32 and short integers.
    left, top = np.maximum(np.floor(corners.min(1)).astype(int) - 1, 0).tolist()
    right, bottom = np.minimum(np.ceil(corners.max(1)).astype(int) + 2, array.shape[1::-1]).tolist()
    matrix = matrix - [[0, 0, left], [0, 0, top]]
    options = dict(
        flags=interpolation | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT if view.angle else cv2.BORDER_REPLICATE,
        borderValue=fill,
    )
    return _by_channels(
        lambda part: cv2.warpAffine(part, matrix, (width, height), **options),
        array[top:bottom, left:right],
    )


def _matrix(size: tuple[int, int], view: View) -> np.ndarray:
    """float64 [2, 3]: (column, row, 1) in the view to (column, row) in the image of `size`; pixels are at their centres."""
    shift = np.array([[1, 0, view.corner[1]], [0, 1, view.corner[0]], [0, 0, 1]], np.float64)
    if view.angle:
        middle = [first + (side - 1) / 2 for first, side in zip(view.corner, view.shape)]
        shift[:2] = cv2.getRotationMatrix2D(middle[::-1], -view.angle, 1.0) @ shift
    down, across = (side / wide for side, wide in zip(size, view.size))
    return np.array([[across, 0, across / 2 - 0.5], [0, down, down / 2 - 0.5]]) @ shift


# --- Choosing it ------------------------------------------------------------------------------------------------------


def random_target(
    rng: np.random.Generator,
    size: tuple[int, int],
    target: Sequence[int],
    ratio_range: Sequence[float],
) -> tuple[int, int]:
    """(long, short) times one ratio uniform in the range; (0, 0) stands for the image's own size (H, W)."""
    target = target if any(target) else (max(size), min(size))
    low, high = ratio_range
    ratio = rng.random() * (high - low) + low
    return max(int(target[0] * ratio), 1), max(int(target[1] * ratio), 1)


def random_view(
    rng: np.random.Generator, label: np.ndarray, size: tuple[int, int], crop_size: Sequence[int],
    cat_max_ratio: float = 1.0, angle: float = 0.0, pixel: tuple[int, int] | None = None,
) -> tuple[View, np.ndarray]:  # fmt: skip
    """A view of at most `crop_size` of the image resized to `size`, all equally likely, and its label.

    With cat_max_ratio < 1, up to ten more are tried until one holds two classes or more and none of them fills that
    share of its pixels (255 not counted); the last one is taken as it is. `pixel` (row, column) of `label` lies in all
    of them, though a turn may take it out of a corner.
    """
    shape = tuple(min(sides) for sides in zip(crop_size, size))
    margins = [wide - side for wide, side in zip(size, shape)]
    if pixel is None:
        ranges = [(0, margin) for margin in margins]
    else:
        pixel = [int((at + 0.5) * wide / side) for at, wide, side in zip(pixel, size, label.shape)]
        ranges = [
            (max(at - side + 1, 0), min(at, margin))
            for at, side, margin in zip(pixel, shape, margins)
        ]

    def draw() -> tuple[View, np.ndarray]:
        corner = tuple(int(rng.integers(low, high + 1)) for low, high in ranges)
        view = View(size, corner, shape, angle)
        return view, view_label(label, view)

    view, seen = draw()
    if cat_max_ratio < 1 and any(margins):
        for _ in range(CROP_TRIES):
            if is_mixed(seen, cat_max_ratio):
                break
            view, seen = draw()
    return view, seen


def is_mixed(label: np.ndarray, cat_max_ratio: float) -> bool:
    """Whether a label uint8 [H, W] holds two classes or more, none filling `cat_max_ratio` of the pixels not 255."""
    counts = _count(label)
    return np.count_nonzero(counts) > 1 and counts.max() / counts.sum() < cat_max_ratio


def class_pixel(rng: np.random.Generator, label: np.ndarray) -> tuple[int, int] | None:
    """(row, column) of a pixel of a class drawn evenly from those in the label; None if all of it is 255."""
    present = np.flatnonzero(_count(label))
    if not len(present):
        return None
    pixels = np.flatnonzero(label == present[rng.integers(len(present))])
    return divmod(int(pixels[rng.integers(len(pixels))]), label.shape[1])


def _count(label: np.ndarray) -> np.ndarray:
    """np.ndarray of each class, float32 [255]; 255 is left out."""
    return cv2.calcHist([label], [0], None, [IGNORE], [0, IGNORE]).ravel()


# --- Changing it ------------------------------------------------------------------------------------------------------


def flip(array: np.ndarray, axis: int) -> np.ndarray:
    """Image [H, W, C] or label [H, W] turned upside down (axis 0) or left to right (axis 1)."""
    return _by_channels(lambda part: cv2.flip(part, axis), array)


def cutout(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """One to three rectangles of an image [H, W, C] set to 0 (arXiv:1708.04552); the label stays, as in MMSegmentation.

    A corner is anywhere in the image, which cuts the rectangle; sides are 1/16 to 1/4 of the image's.
    """
    image = image.copy()
    for _ in range(int(rng.integers(1, HOLES + 1))):
        top, left = (int(rng.integers(side)) for side in image.shape[:2])
        height, width = (max(int(side * rng.uniform(*HOLE_SIDES)), 1) for side in image.shape[:2])
        image[top : top + height, left : left + width] = 0
    return image


def pad(image: np.ndarray, label: np.ndarray, size: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Both at `size`, filled at the bottom and the right with 0 and 255."""
    height, width = label.shape
    if (height, width) == tuple(size):
        return image, label
    padded = np.zeros((*size, *image.shape[2:]), image.dtype)
    ignored = np.full(size, IGNORE, label.dtype)
    padded[:height, :width], ignored[:height, :width] = image, label
    return padded, ignored


# --- All of it --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Augment:
    """What training does to a sample; the fields are those of config.dataset. By default only a crop.

    flip, vertical_flip, rotate, cutout, clahe, mosaic and class_crop are probabilities. rotate: by an angle uniform in
    +-rotate_degrees; what comes from outside of the image is 0 and 255, before colours change. class_crop: the crop
    lies around a random pixel of a class drawn evenly from those in the label, at the cost of `cat_max_ratio` where both
    cannot be had. clahe and photometric see the crop only: see `photometric`. mosaic: see `_join`.
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
        draw: Draw | None = None,
    ) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
        """(image [*crop_size, C] of the same dtype, label uint8 [*crop_size], size (H, W) before padding).

        draw() gives the image and label of another sample, for mosaic only; it should choose it by `rng` too.
        """
        if _happens(rng, self.mosaic):
            return self._join(rng, image, label, draw)
        image, label = self._crop(rng, image, label, self.crop_size)
        return *pad(image, label, self.crop_size), label.shape

    def _crop(
        self,
        rng: np.random.Generator,
        image: np.ndarray,
        label: np.ndarray,
        crop_size: Sequence[int],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Everything but mosaic and padding: both of one size, at most `crop_size`."""
        size = rescaled_size(
            label.shape, random_target(rng, label.shape, self.resize, self.ratio_range)
        )
        angle = (
            rng.uniform(-self.rotate_degrees, self.rotate_degrees)
            if _happens(rng, self.rotate)
            else 0.0
        )
        pixel = class_pixel(rng, label) if _happens(rng, self.class_crop) else None
        view, label = random_view(rng, label, size, crop_size, self.cat_max_ratio, angle, pixel)
        image = view_image(image, view)
        for axis, probability in ((1, self.flip), (0, self.vertical_flip)):
            if _happens(rng, probability):
                image, label = flip(image, axis), flip(label, axis)
        if _happens(rng, self.clahe):
            image = equalize(image)
        if self.photometric:
            image = photometric(rng, image)
        if _happens(rng, self.cutout):
            image = cutout(rng, image)
        return image, label

    def _join(
        self, rng: np.random.Generator, image: np.ndarray, label: np.ndarray, draw: Draw | None
    ) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
        """Mosaic: four crops, this sample's at the top left, that meet at a random point of the middle half.

        Each is augmented by itself. Where an image is smaller than its part, the rest is 0 and 255 and counts as image:
        it may lie anywhere, so it is no padding and the size is that of the crop.
        """
        if draw is None:
            raise DataError(
                "config.dataset.mosaic needs other samples, but none can be drawn here; set it to 0."
            )
        bounds = []
        for side in self.crop_size:
            quarter = max(side // 4, 1)
            bounds.append((0, int(rng.integers(quarter, side - quarter + 1)), side))
        whole, ids = None, np.empty(self.crop_size, np.uint8)
        for number in range(4):
            if number:
                image, label = draw()
            (top, bottom), (left, right) = (
                at[i : i + 2] for at, i in zip(bounds, divmod(number, 2))
            )
            part, seen = pad(
                *self._crop(rng, image, label, (bottom - top, right - left)),
                (bottom - top, right - left),
            )
            whole = (
                np.empty((*self.crop_size, part.shape[2]), part.dtype) if whole is None else whole
            )
            if part.dtype != whole.dtype or part.shape[2] != whole.shape[2]:
                raise DataError(
                    f"config.dataset.mosaic joins images of one kind, but one is {whole.dtype} of {whole.shape[2]} channels "
                    f"and another {part.dtype} of {part.shape[2]}; convert them, or set it to 0."
                )
            whole[top:bottom, left:right], ids[top:bottom, left:right] = part, seen
        return whole, ids, tuple(self.crop_size)


def _happens(rng: np.random.Generator, probability: float) -> bool:
    """True with this probability; of what is off, nothing is drawn."""
    return probability > 0 and rng.random() < probability
