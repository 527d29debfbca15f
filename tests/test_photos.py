"""Arrays given to a Predictor: which are images, errors about others, and missing data."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.predictor_helpers import make_float_predictor, make_predictor, random_image
from PIL import Image

from jaxseg.errors import DataError, ImageTypeError


@pytest.mark.parametrize(
    "image, decisive",
    [
        ("photo.jpg", "predict_files"),
        (Path("photo.jpg"), "predict_files"),
        (Image.new("RGB", (8, 8)), "convert"),
        (None, "NoneType"),
        (np.zeros((8, 8, 3), np.float32), "float32"),
        (np.zeros((8, 8, 3), np.float16), "float16"),
        (np.zeros((8, 8, 3), bool), "bool"),
        (np.zeros((8, 8, 3), np.int64), "int64"),
        (np.zeros((8, 8, 3), np.uint16), "uint16"),
        (np.full((8, 8, 3), None), "object"),
    ],
)
def test_images_of_another_type_are_refused(image, decisive):
    with pytest.raises(ImageTypeError, match=decisive) as error:
        make_predictor()(image)
    assert isinstance(error.value, TypeError) and isinstance(error.value, DataError)


@pytest.mark.parametrize(
    "shape, decisive",
    [
        ((8, 8), "repeats grey"),
        ((8, 9, 4), "transparency"),
        ((8, 9, 1), "(8, 9, 1)"),
        ((3, 8, 9), "transpose"),
        ((2, 8, 8, 3), "as a list"),
        ((0, 8, 3), "(0, 8, 3)"),
        ((8, 0, 3), "(8, 0, 3)"),
        ((), "()"),
    ],
)
def test_images_of_another_shape_are_refused(shape, decisive):
    with pytest.raises(DataError) as error:
        make_predictor().probabilities(np.zeros(shape, np.uint8))
    assert decisive in str(error.value) and "[H, W, 3]" in error.value.problem


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("method", ["__call__", "probabilities"])
def test_images_that_are_not_finite_are_refused_with_the_place(value, method):
    image = np.ones((6, 7, 3), np.float32)
    holed = image.copy()
    holed[2, 3:5, 1] = value
    segment = getattr(make_float_predictor(), method)
    with pytest.raises(DataError) as error:
        segment(holed)
    assert (
        f"holds {value} (2 values" in error.value.problem
        and "row 2, column 3, channel 1" in error.value.problem
    )
    with pytest.raises(DataError) as error:
        segment([image, image, holed])
    assert error.value.field == error.value.file == "image[2]"


def test_arrays_of_any_layout_are_images():
    """Views with negative strides, JAX's arrays, the other byte order."""
    image = random_image(9, 8, 3)
    np.testing.assert_array_equal(
        make_predictor(resize=(18, 16))(image[:, ::-1][:, ::-1]),
        make_predictor(resize=(18, 16))(image),
    )
    np.testing.assert_array_equal(make_predictor()(image[..., ::-1]), image[..., ::-1].argmax(-1))
    np.testing.assert_array_equal(make_predictor()(jnp.asarray(image)), image.argmax(-1))
    swapped = image.astype(np.float32).astype(">f4")
    np.testing.assert_array_equal(make_float_predictor()(swapped), image.argmax(-1))


def test_missing_values_are_255_and_the_rest_is_predicted():
    image = random_image(6, 7, 3).astype(np.float32)
    holed = image.copy()
    holed[1, 2] = np.nan
    holed[3, 4, 0] = np.nan  # the other channels hold data
    expected = np.where(np.isnan(holed), 100, holed).argmax(-1)  # missing values are the mean
    expected[1, 2] = 255
    for segment, given in (
        (make_float_predictor(nodata=(np.nan,)), holed),
        (make_float_predictor(), np.ma.masked_invalid(holed)),
        (
            make_float_predictor(nodata=(-9999,)),
            np.where(np.isnan(holed), np.float32(-9999), holed),
        ),
    ):
        mask = segment(given)
        assert mask.dtype == np.int32
        np.testing.assert_array_equal(mask, expected)
        probabilities = segment.probabilities(given)
        assert not probabilities[1, 2].any() and probabilities[3, 4].sum() == pytest.approx(1)
    with pytest.raises(DataError, match="row 1, column 2"):
        make_float_predictor(nodata=(-9999,))(holed)
