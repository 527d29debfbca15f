"""Images of all kinds: orientation by one rule, damage refused, bands as stored, missing data."""

import io
import re

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from jaxseg.data.decode import ImageOptions, decode, decode_image, inspect_image
from jaxseg.data.decode.images import turn
from jaxseg.data.statistics import image_statistics
from jaxseg.data.values import check_finite, check_range
from jaxseg.errors import DataError

PIXELS = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
PHOTO = cv2.resize(
    np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8),
    (300, 200),
    interpolation=cv2.INTER_CUBIC,
)
TIFF_RGB = dict(photometric="rgb")


def encoded(pixels, kind, **options):
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, kind, **options)
    return data.getvalue()


def tiff(values, **options):
    data = io.BytesIO()
    tifffile.imwrite(data, values, **options)
    return data.getvalue()


# --- Orientation ---


def exif(orientation):
    found = Image.Exif()
    found[0x0112] = orientation
    return found


def same(data, pixels):
    """The header tells the pixels' size, and both are as expected."""
    np.testing.assert_array_equal(decode_image(data, "x"), pixels)
    assert inspect_image(data, "x").size == pixels.shape[:2]


@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_pictures_stand_as_pillow_turns_them(kind, orientation):
    data = encoded(PIXELS, kind, exif=exif(orientation), lossless=True)
    same(data, np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")))


def exif_last(data):
    """A PNG with its eXIf chunk behind the pixels."""
    at, chunks = 8, []
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big") + 12
        chunks.append(data[at : at + size])
        at += size
    order = {b"eXIf": 1, b"IEND": 2}
    chunks.sort(key=lambda chunk: order.get(chunk[4:8], 0))
    return data[:8] + b"".join(chunks)


@pytest.mark.parametrize("kind", ["PNG", "PNG, EXIF last", "JPEG", "WEBP", "GIF", "TIFF"])
def test_views_of_a_larger_buffer_are_read_like_bytes(kind):
    data = encoded(PIXELS, kind.split(",")[0], exif=exif(6))
    if kind == "PNG, EXIF last":
        data = exif_last(data)
        assert data.index(b"eXIf") > data.index(b"IDAT")
        assert decode_image(data, "x").shape == (8, 6, 3)
    view = memoryview(b"before" + data + b"after")[6:-5]
    np.testing.assert_array_equal(decode_image(view, "x"), decode_image(data, "x"))
    assert inspect_image(view, "x") == inspect_image(data, "x")


@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 8])
def test_jpegs_stand_as_opencv_turns_them(orientation):
    data = encoded(PHOTO, "JPEG", exif=exif(orientation))
    same(data, cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB))


@pytest.mark.parametrize("orientation", [0, 9, 200])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_orientations_beyond_8_turn_nothing(kind, orientation):
    plain = decode_image(encoded(PHOTO, kind), "x")
    same(encoded(PHOTO, kind, exif=exif(orientation)), plain)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_xmp_turns_nothing(kind):
    xmp = (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description tiff:Orientation="6"/>'
        b"</rdf:RDF></x:xmpmeta>"
    )
    options = dict(xmp=xmp, lossless=True) if kind != "PNG" else {}
    if kind == "PNG":
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp.decode())
    same(encoded(PHOTO, kind, **options), decode_image(encoded(PHOTO, kind, lossless=True), "x"))


def test_a_label_of_channels_and_grey_turn_alike():
    data = encoded(PHOTO[..., 0], "JPEG", exif=exif(6))
    assert decode_image(data, "x", 1).shape == (300, 200, 1) and turn(PIXELS, 8).shape == (8, 6, 3)
    rgba = np.dstack([PIXELS, PIXELS[..., 0]])
    np.testing.assert_array_equal(
        decode_image(encoded(rgba, "PNG", exif=exif(3)), "x", 4), rgba[::-1, ::-1]
    )


# --- Damage ---

HALF = {
    False: encoded(PHOTO, "JPEG", quality=90),
    True: encoded(PHOTO, "JPEG", quality=90, progressive=True),
}
NOISE = np.random.default_rng(1).integers(0, 256, 1500, np.uint8).tobytes()
DAMAGE = {
    "hole": lambda d: d[: len(d) // 2] + bytes(1500) + d[len(d) // 2 + 1500 :],
    "zero tail": lambda d: d[: len(d) // 2] + bytes(len(d) - len(d) // 2),
    "zero tail with an end": lambda d: (
        d[: len(d) // 2] + bytes(len(d) - len(d) // 2 - 2) + b"\xff\xd9"
    ),
    "noise": lambda d: d[: len(d) // 2] + NOISE + d[len(d) // 2 + 1500 :],
    "cut": lambda d: d[: len(d) // 2],
    "cut with an end": lambda d: d[: len(d) // 2] + b"\xff\xd9",
    "half of one and another": lambda d: d[: len(d) // 2] + HALF[False],
    "two files": lambda d: d + HALF[False],
}


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_jpegs_are_refused(kind, progressive):
    with pytest.raises(DataError, match="cannot be read as an image") as caught:
        decode(DAMAGE[kind](HALF[progressive]), "photo.jpg")
    assert caught.value.file == "photo.jpg"


def test_whole_jpegs_are_opencvs_pixels():
    for data in (
        *HALF.values(),
        HALF[False] + bytes(100),
        encoded(PHOTO[..., 0], "JPEG"),
        encoded(PHOTO, "JPEG", subsampling=2),
    ):
        expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        np.testing.assert_array_equal(decode_image(data, "x"), expected)
        np.testing.assert_array_equal(decode_image(memoryview(data), "x"), expected)
        grey = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
        np.testing.assert_array_equal(decode_image(data, "x", 1)[..., 0], grey)
    inks = io.BytesIO()
    Image.fromarray(PHOTO).convert("CMYK").save(inks, "JPEG", quality=95)
    assert np.abs(decode_image(inks.getvalue(), "x").astype(int) - PHOTO).mean() < 12


# --- Numbers as stored ---


def test_tiff_images_are_the_numbers_stored():
    for values, options in (
        (PIXELS[..., 0], dict(photometric="miniswhite")),
        (PIXELS[..., 0] > 9, {}),
        (PIXELS[..., 0] % 4, dict(bitspersample=2)),
        (PIXELS[..., 0], dict(extratags=[(274, 3, 1, 3, True)])),
        (PIXELS[..., 0].astype(np.uint16) * 200, dict(photometric="miniswhite")),
    ):
        data = tiff(values, **options)
        image, header = decode_image(data, "x", 1), inspect_image(data, "x", 1)
        np.testing.assert_array_equal(image[..., 0], values)
        assert (
            header.dtype == image.dtype.name == ("uint16" if values.dtype == np.uint16 else "uint8")
        )


@pytest.mark.parametrize("photometric", ["separated", "cielab"])
def test_tiffs_whose_values_are_not_colours_of_light_are_refused(photometric):
    values = np.dstack([PIXELS, PIXELS[..., 0]]) if photometric == "separated" else PIXELS
    for function in (decode, inspect_image):
        with pytest.raises(DataError, match=f"{photometric.upper()}.*not colours of light"):
            function(tiff(values, photometric=photometric), "x")


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_an_animation_is_no_image(kind):
    data = encoded(
        PIXELS, kind, save_all=True, append_images=[Image.fromarray(255 - PIXELS)], lossless=True
    )
    for function in (decode, inspect_image):
        with pytest.raises(DataError, match="holds 2 pictures"):
            function(data, "x")


def test_more_pixels_than_allowed_are_refused_by_the_header():
    huge = (
        b"\x89PNG\r\n\x1a\n"
        + bytes([0, 0, 0, 13])
        + b"IHDR"
        + (100000).to_bytes(4, "big") * 2
        + b"\x08\x02\0\0\0"
        + bytes(4)
    )
    with pytest.raises(DataError, match="10000000000 pixels") as caught:
        decode(huge, "bomb.png")
    assert (caught.value.file, caught.value.field) == ("bomb.png", "dataset.max_pixels")
    for data in (
        encoded(PHOTO, "JPEG"),
        encoded(PHOTO, "BMP"),
        encoded(PHOTO, "PNG"),
        tiff(PHOTO, **TIFF_RGB),
    ):
        decode(data, "x", ImageOptions(max_pixels=60000))
        decode(data, "x", ImageOptions(max_pixels=0))
        with pytest.raises(DataError) as caught:
            decode(data, "x", ImageOptions(max_pixels=59999))
        assert caught.value.field == "dataset.max_pixels"


# --- No data ---


@pytest.mark.parametrize(
    "value, dtype, text",
    [
        (-3.4028234663852886e38, "f4", ""),
        (-3.4028234663852886e38, "f4", "-3.40282346638529e+38"),
        (-9999, "i2", ""),
        (np.nan, "f4", "nan"),
        (65535, "u2", ""),
        (0, "u1", ""),
        (-1.7976931348623157e308, "f8", "-1.79769313486232e+308"),
        (-9999, "f4", "-9999.0"),
    ],
)
@pytest.mark.parametrize("declared", [False, True])
def test_missing_data_are_marked_and_left_out(value, dtype, text, declared):
    values = (PIXELS % 100 + 1).astype(dtype)
    values[0], values[1, 0, 1] = value, value  # a row, and one channel of a pixel
    tags = [] if declared else [(42113, 2, 0, text or str(value), True)]
    data = tiff(values, **TIFF_RGB, extratags=tags)
    image = decode(data, "x", ImageOptions(nodata=(value,) if declared else ()))
    assert (
        image.empty.sum() == 8
        and image.empty[0].all()
        and image.missing.sum() == 25
        and image.missing[1, 0, 1]
    )
    filled = image.filled((7.0, 8.0, 9.0))
    assert (filled[0] == (7, 8, 9)).all() and filled[1, 0, 1] == 8
    np.testing.assert_array_equal(filled[2:], values[2:].astype(image.pixels.dtype))
    check_finite(filled, "x")
    valid = values[1:].astype(np.float64)
    mean = image.filled().astype(np.float64)[0].mean(0)
    np.testing.assert_allclose(
        mean[[0, 2]],
        valid[..., [0, 2]].mean((0, 1)),
        atol=0.5 if image.pixels.dtype != np.float32 else 1e-4,
    )
    assert decode(data, "x", ImageOptions(nodata=("none",))).missing is None


class Images:
    files = ("a", "b")

    def __init__(self, *images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def read_decoded(self, index):
        return self.images[index]


def test_statistics_leave_missing_data_out():
    values = np.random.default_rng(0).normal(5, 2, (6, 8, 3)).astype(np.float32)
    holed = values.copy()
    holed[:3], holed[4, 4, 2] = -9999, -9999
    options = ImageOptions(nodata=(-9999,))
    source = Images(
        decode(tiff(values, **TIFF_RGB), "a"), decode(tiff(holed, **TIFF_RGB), "b", options)
    )
    mean, std = image_statistics(source)
    for channel in range(3):
        kept = np.concatenate(
            [values[..., channel].ravel(), holed[..., channel][holed[..., channel] > -9999]]
        ).astype(np.float64)
        np.testing.assert_allclose(
            (mean[channel], std[channel]), (kept.mean(), kept.std()), rtol=1e-9
        )


def test_an_image_without_any_data_is_filled():
    image = decode(
        tiff(np.full((6, 8, 3), -9999, np.float32), **TIFF_RGB), "x", ImageOptions(nodata=(-9999,))
    )
    assert (
        image.empty.all()
        and (image.filled() == 0).all()
        and (image.filled((1, 2, 3)) == (1, 2, 3)).all()
    )


@pytest.mark.parametrize(
    "value, dtype",
    [
        (-9999, "f4"),
        (-3.4e38, "f4"),
        (1e36, "f4"),
        (-32768, "f4"),
        (65535, "u2"),
        (-99999, "f4"),
        (-100, "f4"),
    ],
)
def test_values_far_outside_the_rest_are_reported(value, dtype):
    values = np.random.default_rng(0).random((6, 8, 3)).astype("f4") * (
        1 if dtype == "f4" else 4000
    )
    values = values.astype(dtype)
    values[:2, :, 1] = value
    with pytest.raises(
        DataError, match=re.escape(f"{np.array(value, dtype):.9g} in 16 pixels of channel 1")
    ) as caught:
        check_range(values, "x")
    assert (
        caught.value.field == "dataset.nodata"
        and f"nodata={np.array(value, dtype):.9g}" in caught.value.hint
    )
    check_range(values, "x", ("none",))


def test_measurements_far_apart_are_not():
    rng = np.random.default_rng(0)
    for values in (
        rng.lognormal(0, 2, (50, 60, 1)),
        rng.integers(0, 2, (50, 60, 2)),
        np.zeros((5, 6, 1)),
        np.eye(5)[..., None] * 1e4,
        np.where(rng.random((50, 60, 1)) > 0.999, 3000.0, rng.random((50, 60, 1)) * 500),
        rng.normal(-20000, 9000, (50, 60, 1)),
    ):
        check_range(values.astype(np.float32), "x")
    check_range(np.uint8([[[0]], [[255]], [[255]]]), "x")
