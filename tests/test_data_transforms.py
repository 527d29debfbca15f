"""Augmentation against hand-worked cases and against the whole image resized."""

import cv2
import numpy as np
import pytest
from helpers.augmentation import DISTORTED, EXACT, IMAGE, Script, blocks, noise

from jaxseg.data.augment import photometric, transforms
from jaxseg.data.augment.transforms import Augment
from jaxseg.errors import DataError

# --- Sizes ---


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
    assert transforms.random_target(Script(0.1), (90, 61), (0, 0), (0.5, 2.0)) == (
        58,
        39,
    )  # 0.65 * 90, 0.65 * 61


def test_resize_is_opencv_bilinear():
    image = noise((9, 12, 3))
    np.testing.assert_array_equal(
        transforms.resize_image(image, (24, 18)), cv2.resize(image, (24, 18))
    )


@pytest.mark.parametrize("channels", [1, 2, 5, 200])  # OpenCV takes no more than 128 at once
def test_resize_takes_any_number_of_channels(channels):
    image = noise((9, 12, channels), np.uint16)
    out = transforms.resize_image(image, (24, 18))
    assert out.shape == (18, 24, channels) and out.dtype == np.uint16
    np.testing.assert_array_equal(out[..., -1], cv2.resize(image[..., -1].copy(), (24, 18)))


# --- Choosing the window ---


def test_crop_tries_until_no_class_fills_it():
    label = np.zeros((8, 8), np.uint8)
    label[:, 6:] = 1
    window, seen = transforms.random_window(
        Script(0, 0, 1, 1, 2, 4, 9, 9), label, (8, 8), (4, 4), 0.75
    )
    assert window.corner == (2, 4) and window.shape == (4, 4)  # all 0, all 0, half and half
    np.testing.assert_array_equal(seen, label[2:6, 4:])


def test_crop_tries_on_the_resized_label():
    label = np.uint8([[0, 0, 0, 1]] * 4)
    window, seen = transforms.random_window(Script(0, 0, 1, 4, 9), label, (8, 8), (4, 4), 0.75)
    assert window.corner == (1, 4) and seen.tolist() == [[0, 0, 1, 1]] * 4


def test_crop_takes_the_eleventh_box_as_it_is():
    script = Script(*[value for k in range(11) for value in (0, k % 3)], "not drawn")
    window, _ = transforms.random_window(script, np.zeros((4, 6), np.uint8), (4, 6), (4, 4), 0.75)
    assert window.corner == (0, 1) and script.draws == ["not drawn"]


def test_crop_without_ratio_draws_once():
    assert transforms.random_window(Script(2, 3), np.zeros((8, 8), np.uint8), (8, 8), (4, 4))[
        0
    ].corner == (2, 3)


def test_crop_of_a_small_image():
    window, seen = transforms.random_window(
        Script(0, 1), np.zeros((3, 9), np.uint8), (3, 9), (4, 8)
    )
    assert window.corner == (0, 1) and window.shape == seen.shape == (3, 8)


def test_crop_lies_around_its_pixel():
    label = np.arange(100, dtype=np.uint8).reshape(10, 10)
    corners = {
        transforms.random_window(np.random.default_rng(s), label, (20, 20), (6, 8), pixel=(0, 5))[
            0
        ].corner
        for s in range(300)
    }
    # Row 0 and column 5 are row 1 and column 11 of the resized image, so corners are rows 0 to 1
    # and columns 4 to 11.
    assert corners == {(row, column) for row in (0, 1) for column in range(4, 12)}


def test_a_turned_crop_mostly_keeps_its_pixel():
    label = np.zeros((40, 50), np.uint8)
    label[20:22, 25:27] = 7
    windows = [
        transforms.random_window(
            np.random.default_rng(s), label, (80, 100), (30, 30), angle=45.0, pixel=(20, 25)
        )
        for s in range(100)
    ]
    assert all(
        0 <= 41 - window.corner[0] < 30 and 0 <= 51 - window.corner[1] < 30 for window, _ in windows
    )
    assert (
        70 < sum((seen == 7).any() for _, seen in windows) < 100
    )  # an octagon of 83 % of the square stays


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


def test_class_pixel_is_of_every_class_alike():
    label = np.full((20, 30), 7, np.uint8)
    label[3, 4:6], label[10, 11], label[0] = 2, 254, 255
    rng = np.random.default_rng(0)
    pixels = [transforms.class_pixel(rng, label) for _ in range(600)]
    ids, counts = np.unique([label[pixel] for pixel in pixels], return_counts=True)
    assert ids.tolist() == [2, 7, 254] and counts.min() > 160
    assert {pixel for pixel in pixels if label[pixel] == 2} == {(3, 4), (3, 5)}
    assert transforms.class_pixel(rng, np.full((2, 3), 255, np.uint8)) is None


# --- Holes, padding ---


def test_cutout_by_hand():
    image = np.full((32, 64, 2), 7, np.uint8)
    # Two holes: rows 4 to 4 + 0.1 * 32, columns 60 to 60 + 0.2 * 64 (cut); rows 30 to
    # 30 + 0.25 * 32 (cut), column 0.
    out = transforms.cutout(Script(2, 4, 60, 0.1, 0.2, 30, 0, 0.2499, 1 / 16), image)
    expected = image.copy()
    expected[4:7, 60:], expected[30:, 0:4] = 0, 0
    np.testing.assert_array_equal(out, expected)
    assert (image == 7).all()


def test_pad_fills_at_the_bottom_and_the_right():
    image, label = transforms.pad(np.ones((1, 2, 2), np.uint16), np.ones((1, 2), np.uint8), (2, 3))
    assert image[..., 1].tolist() == [[1, 1, 0], [0, 0, 0]] and label.tolist() == [
        [1, 1, 255],
        [255] * 3,
    ]


# --- All of it ---

CITYSCAPES = dict(ratio_range=(0.5, 2.0), cat_max_ratio=0.75, flip=0.5)
EVERYTHING = CITYSCAPES | dict(
    vertical_flip=0.5,
    photometric=True,
    rotate=0.5,
    cutout=0.5,
    clahe=0.5,
    mosaic=0.5,
    class_crop=0.5,
)


def resize_then_crop(rng, image, label, crop_size):
    """What MMSegmentation's pipeline does, with the whole image resized."""
    height, width = label.shape
    ratio = rng.random() * 1.5 + 0.5
    scale = min(int(width * ratio) / width, int(height * ratio) / height)
    size = int(width * scale + 0.5), int(height * scale + 0.5)
    image, label = cv2.resize(image, size), cv2.resize(label, size, interpolation=cv2.INTER_NEAREST)
    for _ in range(11):
        top, left = (
            int(rng.integers(max(side - crop, 0) + 1)) for side, crop in zip(label.shape, crop_size)
        )
        box = slice(top, top + crop_size[0]), slice(left, left + crop_size[1])
        counts = np.bincount(label[box].ravel())[:255]
        if (size[0] <= crop_size[1] and size[1] <= crop_size[0]) or (
            (counts > 0).sum() > 1 and counts.max() / counts.sum() < 0.75
        ):
            break
    turned = slice(None, None, -1 if rng.random() < 0.5 else 1)
    return image[box][:, turned], label[box][:, turned]


def test_augment_is_resize_then_crop():
    image, label = noise((48, 64, 3)), blocks()
    augment = Augment((40, 50), **CITYSCAPES)
    for seed in range(60):
        out, ids, size = augment(np.random.default_rng(seed), image, label)
        expected, expected_ids = resize_then_crop(
            np.random.default_rng(seed), image, label, (40, 50)
        )
        assert size == expected_ids.shape and out.shape == (40, 50, 3) and out.dtype == np.uint8
        height, width = size
        np.testing.assert_array_equal(ids[:height, :width], expected_ids)
        assert np.abs(out[:height, :width].astype(int) - expected).max() <= (1 if EXACT else 8)
        assert (ids[height:] == 255).all() and (ids[:, width:] == 255).all()
        assert not out[height:].any() and not out[:, width:].any()


def test_scales_and_positions_are_uniform():
    """Of an image that shows where its pixels come from: red its row, green its column."""
    rows, columns = np.mgrid[:64, :64].astype(np.float32)
    image, label = np.stack([rows, columns], -1), np.zeros((64, 64), np.uint8)
    augment, rng = Augment((16, 16), ratio_range=(0.5, 2.0)), np.random.default_rng(0)
    scales, places = [], []
    for _ in range(2000):
        out, _, _ = augment(rng, image, label)
        scale = 10 / (out[12, 12, 0] - out[2, 12, 0])
        scales.append(scale)
        corner = (
            out[4, 4] + 0.5
        ) * scale - 4.5  # pixels within the corner are clamped at the image's border
        places.append(corner / (64 * scale - 16))
    for values in ((np.array(scales) - 0.5) / 1.5, *np.array(places).T):
        ends = np.sort(values)
        assert (
            np.abs(ends - np.linspace(0, 1, 2000)).max() < 0.045
        )  # Kolmogorov-Smirnov, p = 0.0006


def test_label_follows_the_image():
    """Pixels whose colour is their class keep it when they are moved, but for blended edges."""
    label = blocks()
    image = label[..., None].repeat(3, -1) * np.uint8(60) + np.uint8(20)
    moves = dict(vertical_flip=0.5, rotate=0.7, rotate_degrees=40.0, mosaic=0.3, class_crop=0.3)
    outside = 0
    for seed in range(60):
        augment = Augment((40, 50), **CITYSCAPES, **moves)
        out, ids, (height, width) = augment(
            np.random.default_rng(seed), image, label, lambda: (image, label)
        )
        out, ids = out[:height, :width, 0].astype(int), ids[:height, :width]
        seen = ids != 255
        assert (np.abs(out - (ids * 60 + 20)) <= 1)[seen].mean() > 0.75
        assert not out[cv2.erode(np.uint8(~seen), np.ones((5, 5))) > 0].any()
        outside += (~seen).any()
    assert 10 < outside < 60


def test_rotate_draws_its_angle_and_ignores_what_is_outside():
    image, label = np.full((40, 60, 1), 200, np.uint8), np.zeros((40, 60), np.uint8)
    out, ids, size = Augment((40, 60), rotate=1.0, rotate_degrees=30.0)(
        Script(0.0, 0.0, 29.0, 0, 0), image, label
    )
    assert size == (40, 60)
    filled = out[..., 0] == 0
    assert filled.any() and (ids[filled] == 255).all() and (ids[out[..., 0] == 200] == 0).all()
    assert (ids[[0, 0, -1, -1], [0, -1, 0, -1]] == 255).all() and ids[20, 30] == 0
    _, other, _ = Augment((40, 60), rotate=1.0, rotate_degrees=30.0)(
        Script(0.0, 0.0, -29.0, 0, 0), image, label
    )
    np.testing.assert_array_equal(other, ids[::-1])
    out, ids, _ = Augment((40, 60), rotate=0.5)(Script(0.0, 0.6, 0, 0), image, label)
    np.testing.assert_array_equal(out, image)


@pytest.mark.parametrize(
    "fields, ids, pixels",
    [
        (dict(flip=1.0), [[1, 0, 255], [3, 2, 255], [255] * 3], [[2, 1, 0], [4, 3, 0], [0] * 3]),
        (
            dict(vertical_flip=1.0),
            [[2, 3, 255], [0, 1, 255], [255] * 3],
            [[3, 4, 0], [1, 2, 0], [0] * 3],
        ),
    ],
)
@pytest.mark.parametrize("channels", [1, 2, 3, 5, 200])
def test_flips_turn_both_and_keep_padding_at_the_end(fields, ids, pixels, channels):
    image = np.uint16([[1, 2], [3, 4]])[..., None].repeat(channels, -1)
    out, label, size = Augment((3, 3), **fields)(
        np.random.default_rng(0), image, np.uint8([[0, 1], [2, 3]])
    )
    assert size == (2, 2) and label.tolist() == ids
    assert out.shape == (3, 3, channels) and all(
        out[..., c].tolist() == pixels for c in (0, channels - 1)
    )


@pytest.mark.parametrize("rotate", [0.0, 1.0])
def test_class_crop_holds_every_class_in_turn(rotate):
    label = np.zeros((80, 90), np.uint8)
    label[5, 5], label[60, 70] = 1, 2  # two pixels of 7200
    augment = Augment(
        (16, 20), ratio_range=(1.0, 2.0), class_crop=1.0, rotate=rotate, rotate_degrees=45.0
    )
    held = [
        set(
            np.unique(
                augment(np.random.default_rng(seed), np.zeros((80, 90, 1), np.uint8), label)[1]
            )
        )
        for seed in range(150)
    ]
    rare = [ids & {1, 2} for ids in held]
    assert (
        min(rare.count({1}), rare.count({2})) > (15 if rotate else 30) and rare.count(set()) > 30
    )  # a third each, less what turns out


def test_class_crop_of_ignored_pixels_only_is_a_plain_crop():
    label = np.full((9, 9), 255, np.uint8)
    assert Augment((4, 4), class_crop=1.0)(np.random.default_rng(0), label[..., None], label)[
        2
    ] == (4, 4)


def test_cutout_and_clahe_by_name_leave_the_label():
    image, label = cv2.GaussianBlur(noise((64, 64, 3)), (0, 0), 2) | 1, blocks(4, 16, (4, 4))
    out, ids, _ = Augment((64, 64), cutout=1.0)(np.random.default_rng(1), image, label)
    assert (out == 0).any() and ((out == image) | (out == 0)).all() and image.all()
    np.testing.assert_array_equal(ids, label)
    out, ids, _ = Augment((64, 64), clahe=1.0)(np.random.default_rng(1), image, label)
    np.testing.assert_array_equal(out, photometric.equalize(image))
    np.testing.assert_array_equal(ids, label)


def test_photometric_by_name():
    draws = [0.9, 0.1, 20.5, 0.1, 0.7, 0.1, 1.4, 0.1, -11]
    out, _, _ = Augment((3, 2), photometric=True)(
        Script(0.0, 0, 0, *draws), IMAGE, np.zeros((3, 2), np.uint8)
    )
    assert out.tolist() == DISTORTED


def test_mosaic_joins_four_samples():
    samples = iter(
        [(np.full((50, 50, 1), v, np.uint16), np.full((50, 50), v, np.uint8)) for v in (2, 3, 4)]
    )
    first = np.full((50, 50, 1), 1, np.uint16), np.full((50, 50), 1, np.uint8)
    # It happens; they meet at row 10 of 32, column 30 of 40; then a ratio and a corner each.
    script = Script(0.1, 10, 30, *[0.0, 0, 0] * 4)
    out, ids, size = Augment((32, 40), mosaic=0.5)(script, *first, lambda: next(samples))
    expected = np.zeros((32, 40), np.uint8)
    expected[:10, :30], expected[:10, 30:], expected[10:, :30], expected[10:, 30:] = 1, 2, 3, 4
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_array_equal(out[..., 0], expected)
    assert size == (32, 40) and out.dtype == np.uint16 and not script.draws


def test_mosaic_of_small_images_ignores_the_rest():
    sample = np.full((3, 5, 2), 9, np.float32), np.zeros((3, 5), np.uint8)
    out, ids, size = Augment((32, 40), mosaic=1.0)(
        np.random.default_rng(0), *sample, lambda: sample
    )
    assert size == (32, 40) and (ids == 0).sum() == 4 * 15 and (ids == 255).sum() == 32 * 40 - 60
    np.testing.assert_array_equal(out[..., 1] == 9, ids == 0)


def test_mosaic_meets_in_the_middle_half():
    sample = np.zeros((40, 40, 1), np.uint8), np.zeros((40, 40), np.uint8)
    other = sample[0], sample[1] + 1
    for seed in range(40):
        _, ids, _ = Augment((16, 20), mosaic=1.0)(
            np.random.default_rng(seed), *sample, lambda: other
        )
        height, width = (ids[:, 0] == 0).sum(), (ids[0] == 0).sum()
        assert 4 <= height <= 12 and 5 <= width <= 15 and (ids == 0).sum() == height * width


def test_mosaic_says_what_it_cannot_do():
    image, label = np.zeros((8, 8, 1), np.uint8), np.zeros((8, 8), np.uint8)
    augment = Augment((8, 8), mosaic=1.0)
    with pytest.raises(DataError) as error:
        augment(np.random.default_rng(0), image, label)
    assert error.value.field == "dataset.mosaic"
    with pytest.raises(DataError) as error:
        augment(np.random.default_rng(0), image, label, lambda: (image.astype(np.uint16), label))
    assert error.value.field == "dataset.mosaic" and "uint16" in error.value.problem


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_any_image_goes_through_all_of_it(dtype, channels):
    image, label = noise((48, 64, channels), dtype), blocks()
    image.setflags(write=False)  # as of a file that is mapped into memory
    fields = EVERYTHING | dict(clahe=0.0) if dtype == np.float32 else EVERYTHING
    for seed in range(12):
        out, ids, size = Augment((40, 50), **fields)(
            np.random.default_rng(seed), image, label, lambda: (image, label)
        )
        assert out.shape == (40, 50, channels) and out.dtype == dtype
        assert ids.shape == (40, 50) and ids.dtype == np.uint8 and size[0] <= 40 and size[1] <= 50


def test_a_sample_is_a_function_of_its_seed():
    image, label = noise((48, 64, 3)), blocks()
    before = image.copy(), label.copy()
    augment, others = (
        Augment((16, 16), **EVERYTHING),
        [(noise((48, 64, 3), seed=s), blocks(seed=s)) for s in range(5)],
    )

    def sample(seed):
        rng = np.random.default_rng(seed)
        return augment(rng, image, label, lambda: others[int(rng.integers(5))])

    for seed in range(12):
        first, again, other = sample(seed), sample(seed), sample(seed + 100)
        assert all(np.array_equal(a, b) for a, b in zip(first, again))
        assert (first[0] != other[0]).any()
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(label, before[1])
