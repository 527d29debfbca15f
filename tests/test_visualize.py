"""Pictures: sizes, colours, and label files that hold the ids."""

import shutil
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from fontTools import subset
from fontTools.ttLib import TTFont
from PIL import Image, ImageFont

from jaxseg import fonts, visualize
from jaxseg.errors import DataError, JaxsegError

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


def test_any_image_becomes_a_picture():
    image = np.random.default_rng(0).integers(0, 60000, (9, 8, 5)).astype(np.uint16)
    rgb = visualize.to_rgb(image)
    assert rgb.shape == (9, 8, 3) and rgb.dtype == np.uint8
    assert rgb.min() == 0 and rgb.max() == 255
    grey = visualize.to_rgb(image[..., :2].astype(np.float32))
    np.testing.assert_array_equal(grey[..., 0], grey[..., 2])
    same = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    np.testing.assert_array_equal(visualize.to_rgb(same), same)


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


@pytest.mark.parametrize(
    "mask", [np.full((4, 4), 3), np.full((4, 4), -1), np.zeros((4, 4)), np.zeros((4, 4, 1), int)]
)
def test_masks_that_are_none_are_refused(mask):
    with pytest.raises(DataError) as error:
        visualize.colorize(mask, PALETTE)
    assert error.value.field == "mask"


def test_nothing_but_ignored_pixels():
    image, mask = scene(8, 8)
    assert visualize.overlay(image, np.full_like(mask, 255), PALETTE, CLASSES).ndim == 3


# --- Names in any script --------------------------------------------------------------------------

DEJAVU = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"
NAMES = {
    "chinese": "道路",
    "japanese": "ひこうき",
    "korean": "도로",
    "hindi": "सड़क",
    "mixed": "road 道路",
}


def font_with(text, path):
    """A font file whose glyph of every character of the text is DejaVu's `A`."""
    font = TTFont(DEJAVU)
    for table in font["cmap"].tables:
        table.cmap = {ord(c): "A" for c in text} if table.isUnicode() else {}
    subsetter = subset.Subsetter(subset.Options(notdef_outline=True))
    subsetter.populate(unicodes=map(ord, text))
    subsetter.subset(font)
    font.save(path)
    return str(path)


@pytest.fixture
def system_fonts(monkeypatch):
    """What the system's fonts are; the search starts anew."""
    found = []
    for cached in (fonts._find_font, fonts._coverage):
        cached.cache_clear()
    monkeypatch.setattr(fonts, "_system_fonts", lambda: found)
    yield found
    fonts._find_font.cache_clear()


def strip(name):
    return visualize.legend([np.zeros((4, 4), int)], ((9, 9, 9),), (name,), 300)


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_name_that_no_font_can_show_is_its_number(name, system_fonts, tmp_path):
    system_fonts += [
        font_with(name[:-1], tmp_path / "most.ttf"),
        str(tmp_path / "absent.ttf"),
        str(tmp_path / "broken.ttf"),
    ]
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    assert fonts.choose_font(name, 14) is None
    np.testing.assert_array_equal(strip(name), strip("class 0"))


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_font_of_the_system_that_has_every_letter_is_taken(name, system_fonts, tmp_path):
    system_fonts += [
        font_with(name[:-1], tmp_path / "most.ttf"),
        font_with(name, tmp_path / "all.ttf"),
    ]
    assert fonts.choose_font(name, 14).path == str(tmp_path / "all.ttf")
    assert (strip(name) != strip("class 0")).any()


@pytest.mark.parametrize("name", ["café", "Straße", "łąka", "дорога", "δρόμος", "طريق"])
def test_other_alphabets_need_no_font_of_the_system(name, system_fonts):
    assert fonts.choose_font(name, 14).path == str(DEJAVU)


def test_english_names_need_no_other_font(monkeypatch):
    monkeypatch.setattr(fonts, "_find_font", lambda letters: pytest.fail("searched"))
    assert (
        fonts.choose_font("traffic light, 100% (it's)", 14).getname()
        == ImageFont.load_default(14).getname()
    )


def test_joiners_and_variation_selectors_need_no_glyph(system_fonts, tmp_path):
    system_fonts.append(font_with("㊗", tmp_path / "emoji.ttf"))
    assert fonts.choose_font("㊗\ufe0f\u200d", 14).path == str(tmp_path / "emoji.ttf")


def test_fonts_of_placeholders_are_left_out_and_plain_ones_come_first(monkeypatch):
    from matplotlib import font_manager

    files = [
        "/f/LastResort.otf",
        "/f/NotoSansCJK-Bold.ttc",
        "/f/NotoSansCJK-Regular.ttc",
        "/f/AdobeBlank.otf",
    ]
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: files)
    assert fonts._system_fonts.__wrapped__() == (
        "/f/NotoSansCJK-Regular.ttc",
        "/f/NotoSansCJK-Bold.ttc",
    )


def test_system_fonts_are_found(monkeypatch, tmp_path):
    from matplotlib import font_manager

    shutil.copy(DEJAVU, tmp_path / "Some.ttf")
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(tmp_path / "Some.ttf")])
    assert fonts._system_fonts.__wrapped__() == (str(tmp_path / "Some.ttf"),)


# --- Files ----------------------------------------------------------------------------------------


def test_pictures_that_cannot_be_written_name_the_file(tmp_path):
    (tmp_path / "file").write_text("")
    for write in (
        lambda path: visualize.save_label_png(path / "a.png", np.zeros((2, 2), int), PALETTE),
        lambda path: visualize.save_picture(path, "a", np.zeros((2, 2, 3), np.uint8)),
    ):
        with pytest.raises(JaxsegError) as error:
            write(tmp_path / "file")
        assert error.value.file == str(tmp_path / "file/a.png")


def test_a_long_name_is_written(tmp_path):
    path = visualize.save_picture(tmp_path, "n" * 250, np.zeros((2, 2, 3), np.uint8))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_without_matplotlib_other_names_are_numbers(monkeypatch, caplog):
    """It is an optional dependency."""
    for cached in (fonts._default_letters, fonts._find_font, fonts._log_missing):
        cached.cache_clear()
    for name in ("matplotlib", "matplotlib.ft2font"):
        monkeypatch.setitem(sys.modules, name, None)
    for _ in range(2):
        np.testing.assert_array_equal(strip("дорога"), strip("class 0"))
    assert (strip("road") != strip("class 0")).any()
    assert len(caplog.records) == 1 and "matplotlib" in caplog.text
    fonts._log_missing.cache_clear()
