"""Transforms against hand-worked cases and one stored result of MMSegmentation's own photometric distortion."""

import cv2
import numpy as np
import pytest

from jaxseg.data import transforms


class Script:
    """A generator that draws what it is told."""

    def __init__(self, *draws):
        self.draws = list(draws)

    def random(self):
        return self.draws.pop(0)

    def uniform(self, low, high):
        assert low <= self.draws[0] < high
        return self.draws.pop(0)

    def integers(self, low, high=None):
        low, high = (0, low) if high is None else (low, high)
        assert low <= self.draws[0] < high
        return self.draws.pop(0)


# --- Sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size, target, expected",
    [
        ((360, 480), (480, 360), (360, 480)),
        ((1024, 2048), (2049, 1025), (1025, 2049)),  # scale 1.00049
        ((500, 375), (2048, 512), (683, 512)),  # 512 / 375 decides: 682.67 rounds up
        ((300, 900), (1024, 512), (341, 1024)),  # 1024 / 900 decides
        ((605, 700), (605, 700), (605, 700)),
        ((7, 9), (0, 0), (7, 9)),
    ],
)
def test_rescaled_size(size, target, expected):
    assert transforms.rescaled_size(size, target) == expected


def test_random_target_is_one_ratio_cut_to_integers():
    assert transforms.random_target(Script(0.5), (360, 480), (2048, 512), (0.5, 2.0)) == (2560, 640)
    assert transforms.random_target(Script(0.1), (90, 61), (0, 0), (0.5, 2.0)) == (58, 39)  # 0.65 * 90, 0.65 * 61


def test_resize_is_opencv_bilinear_and_nearest():
    rng = np.random.default_rng(0)
    image, label = rng.integers(0, 256, (9, 12, 3), np.uint8), rng.integers(0, 5, (9, 12), np.uint8)
    np.testing.assert_array_equal(transforms.resize_image(image, (24, 18)), cv2.resize(image, (24, 18)))
    np.testing.assert_array_equal(transforms.resize_label(label, (24, 18)), np.repeat(np.repeat(label, 2, 0), 2, 1))
    assert transforms.resize_image(image[..., :1], (24, 18)).shape == (18, 24, 1)


# --- Crop -------------------------------------------------------------------------------------------------------------


def test_crop_tries_until_no_class_fills_it():
    label = np.zeros((8, 8), np.uint8)
    label[:, 6:] = 1
    box = transforms.random_crop(Script(0, 0, 1, 1, 2, 4, 9, 9), label, (4, 4), 0.75)
    assert box == (slice(2, 6), slice(4, 8))  # all 0, all 0, half and half


def test_crop_takes_the_eleventh_box_as_it_is():
    draws = [value for k in range(11) for value in (0, k % 3)] + ["not drawn"]
    script = Script(*draws)
    assert transforms.random_crop(script, np.zeros((4, 6), np.uint8), (4, 4), 0.75) == (slice(0, 4), slice(1, 5))
    assert script.draws == ["not drawn"]


def test_crop_without_ratio_draws_once():
    assert transforms.random_crop(Script(2, 3), np.zeros((8, 8), np.uint8), (4, 4), 1.0) == (slice(2, 6), slice(3, 7))


def test_crop_of_a_small_image():
    rows, columns = transforms.random_crop(Script(0, 1), np.zeros((3, 9), np.uint8), (4, 8), 1.0)
    assert np.zeros((3, 9))[rows, columns].shape == (3, 8)


@pytest.mark.parametrize(
    "values, mixed",
    [
        ([0, 0, 0, 1], False),  # exactly 0.75
        ([0, 0, 1, 1], True),
        ([0, 0, 0, 0], False),
        ([0, 0, 0, 255], False),  # ignored pixels are no class
        ([0, 1, 255, 255], True),
        ([255] * 4, False),
    ],
)
def test_is_mixed(values, mixed):
    assert bool(transforms.is_mixed(np.uint8([values]), 0.75)) == mixed


# --- Colours ----------------------------------------------------------------------------------------------------------

IMAGE = np.uint8([[[200, 30, 60], [12, 240, 130]], [[90, 90, 90], [255, 0, 128]], [[5, 77, 250], [128, 200, 3]]])
# MMSegmentation 1.2.2 on this image: brightness +20.5, saturation 1.4, hue -11, then contrast 0.7.
DISTORTED = [[[154, 0, 81], [0, 178, 30]], [[77, 77, 77], [178, 0, 160]], [[0, 119, 178], [154, 154, 0]]]


def test_photometric_equals_mmsegmentation():
    rng = Script(0.9, 0.1, 20.5, 0.1, 0.7, 0.1, 1.4, 0.1, -11)
    assert transforms.photometric(rng, IMAGE.copy()).tolist() == DISTORTED and not rng.draws


def test_contrast_before_and_after_by_hand():
    pixel = np.uint8([[[100, 201, 7]]])
    assert transforms.photometric(Script(0.1, 0.1, -10.5, 0.1, 1.4, 0.9, 0.9), pixel).tolist() == [[[124, 255, 0]]]
    assert transforms.photometric(Script(0.9, 0.9, 0.1, 0.5, 0.9, 0.9), pixel).tolist() == [[[50, 100, 3]]]


def test_nothing_drawn_changes_nothing():
    np.testing.assert_array_equal(transforms.photometric(Script(0.9, 0.9, 0.9, 0.9, 0.9), IMAGE), IMAGE)


# --- All of it --------------------------------------------------------------------------------------------------------


def test_label_follows_the_image():
    """Pixels whose colour is their class keep it through resize, crop, flip and padding, but for blended edges."""
    label = np.repeat(np.repeat(np.random.default_rng(1).integers(0, 4, (3, 4)), 16, 0), 16, 1).astype(np.uint8)
    image = np.repeat(label[..., None] * np.uint8(60), 3, -1)
    augment = transforms.Augment((40, 50), ratio_range=(0.5, 2.0), cat_max_ratio=0.75, flip=0.5)
    for seed in range(20):
        out, ids, (height, width) = augment(np.random.default_rng(seed), image, label)
        assert out.shape == (40, 50, 3) and ids.shape == (40, 50)
        assert (ids[height:] == 255).all() and (ids[:, width:] == 255).all() and (ids[:height, :width] < 4).all()
        assert (out[height:] == 0).all() and (out[:, width:] == 0).all()
        assert (out[:height, :width, 0] == ids[:height, :width] * 60).mean() > 0.75


def test_flip_turns_both_and_keeps_padding_at_the_right():
    image = np.arange(6, dtype=np.uint8).reshape(1, 2, 3)
    out, ids, size = transforms.Augment((2, 3), flip=1.0)(np.random.default_rng(0), image, np.uint8([[0, 1]]))
    assert size == (1, 2) and ids.tolist() == [[1, 0, 255], [255] * 3]
    assert out[0].tolist() == [[3, 4, 5], [0, 1, 2], [0, 0, 0]]


def test_a_sample_is_a_function_of_its_seed():
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    before, augment = image.copy(), transforms.Augment((16, 16), (0, 0), (0.5, 2.0), 0.75, 0.5, True)
    outs = [augment(np.random.default_rng(seed), image, image[..., 0] // 90)[0] for seed in (1, 1, 2)]
    np.testing.assert_array_equal(outs[0], outs[1])
    assert (outs[0] != outs[2]).any()
    np.testing.assert_array_equal(image, before)
