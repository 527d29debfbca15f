"""Crops of an image that is never resized as a whole: they equal cv2.resize, then a crop."""

import cv2
import numpy as np
import pytest
from helpers.augmentation import EXACT, noise

from jaxseg.data.augment import transforms
from jaxseg.data.augment.transforms import CropWindow

SIZES = [
    ((20, 31), size)
    for size in [(20, 31), (10, 15), (40, 62), (7, 9), (21, 32), (33, 47), (19, 31), (1, 1)]
]
SIZES += [((1, 1), (5, 7)), ((2, 300), (3, 449)), ((64, 48), (127, 95)), ((49, 49), (49, 98))]


def windows(size):
    """Boxes at all four corners, in the middle, and all of it."""
    shape = tuple(max(side * 2 // 3, 1) for side in size)
    down, right = (side - part for side, part in zip(size, shape))
    corners = [(0, 0), (0, right), (down, 0), (down, right), (down // 2, right // 2)]
    return [CropWindow(size, corner, shape) for corner in corners] + [
        CropWindow(size, (0, 0), size)
    ]


def cut(array, window):
    (top, left), (height, width) = window.corner, window.shape
    return array[top : top + height, left : left + width]


def test_label_of_a_window_is_exactly_resize_then_crop():
    rng, cases = np.random.default_rng(0), SIZES.copy()
    for _ in range(
        300
    ):  # many ratios: one index in 50 would be off, were the scale computed in another way
        cases.append(((3, int(rng.integers(1, 90))), (3, int(rng.integers(1, 200)))))
    for old, size in cases:
        label = noise(old)
        whole = cv2.resize(label, size[::-1], interpolation=cv2.INTER_NEAREST)
        for window in windows(size):
            np.testing.assert_array_equal(
                transforms.extract_label(label, window), cut(whole, window), str((old, window))
            )


@pytest.mark.parametrize(
    "dtype, channels",
    [(np.uint8, c) for c in (1, 2, 3, 4, 5)] + [(np.uint16, 3), (np.uint16, 5), (np.float32, 2)],
)
def test_image_of_a_window_is_resize_then_crop_but_for_rounding(dtype, channels):
    errors = []
    for old, size in SIZES:
        image = noise((*old, channels), dtype)
        whole = np.stack(
            [cv2.resize(image[..., c].copy(), size[::-1]) for c in range(channels)], -1
        ).astype(np.float64)
        for window in windows(size):
            out = transforms.extract_image(image, window)
            assert out.shape == (*window.shape, channels) and out.dtype == dtype
            errors.append(np.abs(out - cut(whole, window)).ravel())
    errors, top = np.concatenate(errors), 1.0 if dtype == np.float32 else np.iinfo(dtype).max
    step = 3e-5 if dtype == np.float32 else 1  # of rounding
    assert errors.max() <= (step if EXACT else top / 32) and errors.mean() < 0.15 * (
        step if EXACT else top / 32
    )


def test_a_window_at_scale_1_is_a_slice():
    image = noise((20, 31, 3))
    out = transforms.extract_image(image, CropWindow((20, 31), (3, 4), (10, 20)))
    assert np.shares_memory(out, image)
    np.testing.assert_array_equal(out, image[3:13, 4:24])


def test_a_window_reads_only_the_pixels_it_needs():
    """Of the image only the box that the window needs is touched."""
    image, asked = noise((100, 200, 3)), []

    class Undecoded:
        shape = image.shape

        def __getitem__(self, box):
            asked.append([(side.start, side.stop) for side in box])
            return image[box]

    for window in (
        CropWindow((200, 400), (60, 100), (40, 80)),
        CropWindow((100, 200), (60, 100), (40, 80)),
    ):
        np.testing.assert_array_equal(
            transforms.extract_image(Undecoded(), window), transforms.extract_image(image, window)
        )
    (rows, columns), exact = asked
    assert (
        27 <= rows[0] <= 29
        and 51 <= rows[1] <= 53
        and 47 <= columns[0] <= 49
        and 91 <= columns[1] <= 93
    )
    assert exact == [(60, 100), (100, 180)]
    assert all(isinstance(end, int) for box in asked for side in box for end in side)


def test_a_window_of_many_channels_and_of_a_wide_image():
    image = noise((9, 12, 200))
    out = transforms.extract_image(image, CropWindow((18, 24), (5, 6), (8, 9)))
    np.testing.assert_array_equal(
        out[..., 150:151],
        transforms.extract_image(image[..., 150:151], CropWindow((18, 24), (5, 6), (8, 9))),
    )
    wide = noise((2, 70000, 1))  # beyond OpenCV's short integers
    out = transforms.extract_image(wide, CropWindow((2, 140000), (0, 120000), (2, 1000)))
    assert (
        np.abs(
            out[..., 0].astype(int) - cv2.resize(wide[:, 59990:60510], (1040, 2))[:, 20:1020]
        ).max()
        <= 1
    )


def test_a_quarter_turn_is_exact():
    image, label = noise((5, 5, 3)), noise((5, 5))
    window = CropWindow((5, 5), (0, 0), (5, 5), 90.0)
    np.testing.assert_array_equal(
        transforms.extract_image(image, window), np.rot90(image)
    )  # counter-clockwise
    np.testing.assert_array_equal(transforms.extract_label(label, window), np.rot90(label))


def test_outside_of_the_image_is_0_and_255():
    image, label = np.full((2, 4, 1), 9, np.uint8), np.uint8([[1, 2, 3, 4], [5, 6, 7, 8]])
    window = CropWindow((2, 4), (0, 0), (2, 4), 90.0)  # the middle columns become rows
    assert transforms.extract_label(label, window).tolist() == [[255, 3, 7, 255], [255, 2, 6, 255]]
    assert transforms.extract_image(image, window)[..., 0].tolist() == [[0, 9, 9, 0]] * 2


def test_a_turn_at_twice_the_size():
    """A window shows the resized image, rotated about its centre, at any angle."""
    image = cv2.GaussianBlur(noise((40, 50, 3)), (0, 0), 3)
    whole = cv2.resize(image, (100, 80)).astype(int)
    for angle in (-33.0, 10.0, 90.0):
        out = transforms.extract_image(
            image, CropWindow((80, 100), (20, 30), (41, 41), angle)
        ).astype(int)
        assert np.abs(out[20, 20] - whole[40, 50]).max() <= 1
        if angle == 90:  # 5 to the right of the middle is now 5 above it
            assert np.abs(out[15, 20] - whole[40, 55]).max() <= 1
