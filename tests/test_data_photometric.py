"""Colours against OpenCV, hand-worked cases and a stored result of MMSegmentation."""

import cv2
import numpy as np
import pytest
from helpers.augmentation import DISTORTED, IMAGE, Script, noise

from jaxseg.data.augment import photometric
from jaxseg.errors import DataError


def test_photometric_equals_mmsegmentation():
    rng = Script(0.9, 0.1, 20.5, 0.1, 0.7, 0.1, 1.4, 0.1, -11)
    assert photometric.photometric(rng, IMAGE).tolist() == DISTORTED and not rng.draws


def test_contrast_before_and_after_by_hand():
    pixel = np.uint8([[[100, 201, 7]]])
    assert photometric.photometric(Script(0.1, 0.1, -10.5, 0.1, 1.4, 0.9, 0.9), pixel).tolist() == [
        [[124, 255, 0]]
    ]
    assert photometric.photometric(Script(0.9, 0.9, 0.1, 0.5, 0.9, 0.9), pixel).tolist() == [
        [[50, 100, 3]]
    ]


def test_hue_goes_round():
    red = np.uint8([[[255, 0, 0]]])
    assert photometric.photometric(Script(0.9, 0.9, 0.9, 0.9, 0.1, -10), red).tolist() == [
        [[255, 0, 85]]
    ]  # 340 degrees


@pytest.mark.parametrize(
    "image", [IMAGE, IMAGE[..., :2], IMAGE.astype(np.float32)], ids=["rgb", "two channels", "float"]
)
def test_nothing_drawn_changes_nothing(image):
    np.testing.assert_array_equal(
        photometric.photometric(Script(0.9, 0.9, 0.9, 0.9, 0.9), image), image
    )


@pytest.mark.parametrize(
    "dtype, values, expected",
    [
        (
            np.uint8,
            [0, 101, 200],
            [15, 166, 255],
        ),  # largest 200: brightness 0.05 * 200 = 10, then contrast 1.5
        (np.uint16, [0, 101, 60000], [4500, 4651, 65535]),  # brightness 3000
        (np.float32, [-4.0, 1.0, 40.0], [-3.0, 4.5, 63.0]),  # brightness 2, nothing clipped
    ],
)
def test_brightness_and_contrast_of_other_images(dtype, values, expected):
    out = photometric.photometric(
        Script(0.1, 0.05, 0.1, 1.4999999), np.array(values, dtype).reshape(1, 1, 3).repeat(2, 2)
    )
    assert out.dtype == dtype and out.shape == (1, 1, 6)
    np.testing.assert_allclose(out[0, 0, ::2], expected, atol=1 if dtype != np.float32 else 1e-4)


def test_brightness_only_is_cut_and_clipped_at_0():
    grey = np.uint16([[[3], [1000]]])
    assert photometric.photometric(Script(0.1, -0.0101, 0.9), grey).tolist() == [
        [[0], [989]]
    ]  # 1000 - 10.1 is cut


def test_equalize_is_opencv_clahe_of_every_channel():
    clahe = cv2.createCLAHE(40.0, (8, 8))
    for dtype in (np.uint8, np.uint16):
        image = cv2.GaussianBlur(noise((60, 70, 5), dtype), (0, 0), 2)
        out = photometric.equalize(image)
        assert out.shape == image.shape and out.dtype == dtype and (out != image).any()
        for channel in range(5):
            np.testing.assert_array_equal(
                out[..., channel], clahe.apply(image[..., channel].copy())
            )
    with pytest.raises(DataError) as error:
        photometric.equalize(noise((8, 8, 1), np.float32))
    assert error.value.field == "dataset.clahe" and "float32" in error.value.problem
