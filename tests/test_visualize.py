"""Pictures: sizes, colours, and label files that hold the ids."""

import numpy as np
import pytest
from PIL import Image

from jaxseg import visualize

CLASSES = ("road", "a class with a rather long name", "sky")
PALETTE = ((128, 64, 128), (0, 200, 0), (70, 130, 180))


def scene(height, width):
    mask = np.zeros((height, width), np.int32)
    mask[: height // 2] = 2
    mask[:3, :5] = 255
    return np.full((height, width, 3), 120, np.uint8), mask


@pytest.mark.parametrize("size", [(96, 96), (64, 128), (512, 1024), (7, 3)])
def test_overlay_enlarges_small_images_and_adds_a_legend(size):
    image, mask = scene(*size)
    picture = visualize.overlay(image, mask, PALETTE, CLASSES)
    factor = picture.shape[1] // size[1]
    assert picture.dtype == np.uint8 and picture.shape[1] == factor * size[1]
    assert min(size) * factor >= visualize.SMALLEST_SIDE
    assert picture.shape[0] > factor * size[0]


def test_overlay_mixes_colours_and_leaves_absent_classes_out():
    image, mask = scene(400, 400)
    picture = visualize.overlay(image, mask, PALETTE, CLASSES, opacity=0.5)
    np.testing.assert_allclose(picture[300, 300], (np.array(PALETTE[0]) + 120) / 2, atol=1)
    strip = visualize.legend([mask], PALETTE, CLASSES, 400).reshape(-1, 3).tolist()
    assert list(PALETTE[0]) in strip and list(PALETTE[2]) in strip and list(PALETTE[1]) not in strip


def test_image_of_another_size_is_resized_to_the_mask():
    image, _ = scene(200, 300)
    _, mask = scene(400, 600)
    assert visualize.overlay(image, mask, PALETTE, CLASSES).shape[1] == 600


@pytest.mark.parametrize("size", [(48, 64), (1024, 2048)])
def test_panel_has_three_columns(size):
    image, mask = scene(*size)
    picture = visualize.panel(image, mask, np.where(mask == 255, 0, mask), PALETTE, CLASSES)
    assert picture.dtype == np.uint8
    assert 3 * 320 <= picture.shape[1] <= 3 * visualize.LARGEST_SIDE + 100


def test_label_png_holds_ids_and_colours(tmp_path):
    _, mask = scene(20, 30)
    visualize.save_label_png(tmp_path / "a.png", mask, PALETTE)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.mode == "P"
        np.testing.assert_array_equal(np.asarray(picture), mask)
        assert tuple(np.asarray(picture.convert("RGB"))[19, 29]) == PALETTE[0]


def test_save_picture_makes_its_folder(tmp_path):
    path = visualize.save_picture(tmp_path / "new", "city/0001", np.zeros((4, 5, 3), np.uint8))
    assert path.name == "city-0001.png" and path.is_file()


@pytest.mark.parametrize("mask", [np.full((4, 4), 3), np.full((4, 4), -1), np.zeros((4, 4)), np.zeros((4, 4, 1), int)])
def test_masks_that_are_none_are_refused(mask):
    with pytest.raises(ValueError, match="mask"):
        visualize.colorize(mask, PALETTE)


def test_nothing_but_ignored_pixels():
    image, mask = scene(8, 8)
    assert visualize.overlay(image, np.full_like(mask, 255), PALETTE, CLASSES).ndim == 3
