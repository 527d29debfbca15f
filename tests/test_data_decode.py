"""Image files of every kind: what is read, and that the header says the same as the pixels."""

import io

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from jaxseg.data import decode
from jaxseg.data.decode import formats
from jaxseg.errors import DataError


def test_images_are_rgb_and_grey_is_repeated(tmp_path):
    pixels = np.uint8([[[255, 0, 0], [0, 10, 0]]])
    Image.fromarray(pixels).save(tmp_path / "x.png")
    np.testing.assert_array_equal(
        decode.decode_image((tmp_path / "x.png").read_bytes(), "x"), pixels
    )
    Image.fromarray(pixels[..., 1]).save(tmp_path / "g.png")
    np.testing.assert_array_equal(
        decode.decode_image((tmp_path / "g.png").read_bytes(), "g")[..., 2], [[0, 10]]
    )


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_header_agrees_with_pixels_about_exif_orientation(kind):
    exif, data = Image.Exif(), io.BytesIO()
    exif[formats.ORIENTATION] = 6
    Image.fromarray(np.zeros((8, 12, 3), np.uint8)).save(data, kind, exif=exif)
    size = decode.inspect_image(data.getvalue(), "x").size
    assert size == decode.inspect_image(data.getvalue(), "x", load=True).size
    if kind == "TIFF":  # nobody turns these
        assert size == (8, 12) == decode.decode_image(data.getvalue(), "x").shape[:2]
    else:
        assert size == (12, 8) == decode.decode_image(data.getvalue(), "x").shape[:2]


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_header_agrees_with_pixels_about_depth_and_channels(tmp_path, suffix, channels, dtype):
    pixels = np.arange(4 * 6 * channels, dtype=dtype).reshape(4, 6, channels) * (
        1000 if dtype == np.uint16 else 2
    )
    order = [2, 1, 0, 3][:channels] if channels > 1 else [0]
    file = tmp_path / f"x{suffix}"
    cv2.imwrite(str(file), pixels[..., order])
    assert decode.inspect_image(file, file)[:3] == ((4, 6), channels, np.dtype(dtype).name)
    np.testing.assert_array_equal(decode.decode_image(file.read_bytes(), file, channels), pixels)
    if channels == 4 and suffix == ".png":
        np.testing.assert_array_equal(decode.decode_image(file.read_bytes(), file), pixels[..., :3])
    elif (
        channels == 4
    ):  # OpenCV's TIFF does not call the fourth one transparency, so it may be infrared
        with pytest.raises(DataError) as error:
            decode.decode_image(file.read_bytes(), file)
        assert error.value.field == "dataset.channels" and "channels=4" in error.value.hint


def test_transparency_of_a_tiff_is_dropped_and_a_fourth_band_is_not(tmp_path):
    pixels = np.arange(96, dtype=np.uint8).reshape(4, 6, 4)
    Image.fromarray(pixels).save(tmp_path / "x.tif")
    np.testing.assert_array_equal(
        decode.decode_image((tmp_path / "x.tif").read_bytes(), "x"), pixels[..., :3]
    )
    assert decode.inspect_image(tmp_path / "x.tif", "x").alpha
    np.save(tmp_path / "x.npy", pixels)
    header = decode.inspect_image(tmp_path / "x.npy", "x")
    with pytest.raises(DataError) as error:
        decode.check_channels(header.channels, 3, "x", header.alpha)
    assert (error.value.file, error.value.field) == ("x", "dataset.channels")
    assert "channels=4" in error.value.hint


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"planarconfig": "separate"},
        {"planarconfig": "contig"},
        {"compression": "zlib", "predictor": True},
    ],
)
def test_tiff_of_many_channels(tmp_path, options):
    pixels = np.random.default_rng(0).integers(0, 60000, (20, 24, 5)).astype(np.uint16)
    file, planar = tmp_path / "x.tif", options.get("planarconfig") == "separate"
    tifffile.imwrite(
        file, pixels.transpose(2, 0, 1) if planar else pixels, photometric="minisblack", **options
    )
    assert decode.inspect_image(file, file, 5)[:3] == ((20, 24), 5, "uint16")
    np.testing.assert_array_equal(decode.decode_image(file.read_bytes(), file, 5), pixels)
    with pytest.raises(DataError) as error:
        decode.decode_image(file.read_bytes(), file)
    assert (error.value.file, error.value.field) == (str(file), "dataset.channels")
    assert "channels=5" in error.value.hint


@pytest.mark.parametrize(
    "stored, dtype",
    [("uint8", "uint8"), ("uint16", "uint16"), ("int16", "float32"), ("float64", "float32")],
)
def test_arrays(tmp_path, stored, dtype):
    pixels = np.arange(20 * 24 * 5).reshape(20, 24, 5) % 200
    file = tmp_path / "x.npy"
    for array in (pixels, pixels.transpose(2, 0, 1)):
        np.save(file, array.astype(stored))
        image = decode.decode_image(file.read_bytes(), file, 5)
        assert (
            decode.inspect_image(file, file, 5)[:3] == ((20, 24), 5, dtype) and image.dtype == dtype
        )
        np.testing.assert_array_equal(image, pixels)
    np.save(file, pixels[..., 0].astype(stored))
    assert decode.decode_image(file.read_bytes(), file, 3).shape == (20, 24, 3)
    np.save(file, np.array(["no", "number"]))
    with pytest.raises(DataError, match=r"x.npy: an array \(2,\) of .*; an image is"):
        decode.decode_image(file.read_bytes(), file, 3)


@pytest.mark.parametrize("data", [b"II*\0damaged", b"\x93NUMPYdamaged"])
def test_damaged_tiff_and_npy(tmp_path, data):
    (tmp_path / "x").write_bytes(data)
    for function in (decode.decode_image, decode.inspect_image):
        with pytest.raises(DataError, match="x: cannot be read as a"):
            function(data, tmp_path / "x")
