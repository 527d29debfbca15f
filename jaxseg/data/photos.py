"""Arrays given to a model for prediction: what they must be, and where they hold no data."""

from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from jaxseg.data.decode import mark_missing
from jaxseg.data.values import check_finite
from jaxseg.errors import DataError, ImageTypeError

FINITE_HINT = "if it stands for missing data, say so: --config.dataset.nodata={value}, or numpy.ma.masked_invalid(image)"


def prepare_image(image: Any, data: ConfigDict) -> tuple[np.ndarray, np.ndarray | None]:
    """Check an image given for prediction, and fill in what is missing as in training.

    Args:
        image: [H, W, C]. Missing are the masked values of a masked array, and those that config.dataset.nodata names.
        data: config.dataset of the model.

    Returns:
        The pixels, and where no channel holds data: bool [H, W], or None if there is no such pixel.

    Raises:
        DataError: it is no image of the kind that the model was trained on, or holds NaN or infinity.
    """
    check_image(image, data.channels, data.dtype)
    decoded = mark_missing(np.asarray(image), tuple(data.get("nodata", ())))
    if np.ma.is_masked(image):
        masked = np.ma.getmaskarray(image)
        decoded = decoded._replace(
            missing=masked if decoded.missing is None else decoded.missing | masked
        )
    pixels = decoded.filled(data.image_mean)
    check_finite(pixels, "", FINITE_HINT)
    return pixels, decoded.empty


def check_image(image: Any, channels: int, expected: str = "uint8") -> None:
    """Refuse what is no image [H, W, channels] of the dtype that the model was trained on.

    Raises:
        ImageTypeError: it is no array, or one of another dtype.
        DataError: it is of another shape, or empty.
    """
    what = f"[H, W, {channels}]{' (RGB)' if channels == 3 else ''}"
    if not isinstance(image, np.ndarray | jax.Array):
        raise ImageTypeError(
            f"an image must be a numpy array {expected} {what}, not {type(image).__name__}",
            hint=_as_array(image),
        )
    if image.dtype.newbyteorder("=") != expected:
        values = (
            "its values 0..255 as they are in the file"
            if expected == "uint8"
            else "values like those it was trained on"
        )
        raise ImageTypeError(
            f"the model takes images of {expected}, not {image.dtype} (shape {image.shape})",
            hint=f"give it {values}; it normalises them itself",
        )  # fmt: skip
    if image.ndim == 4:
        raise DataError(
            f"an image must have the shape {what}, not {image.shape}", hint="give several as a list"
        )
    if image.ndim != 3 or image.shape[2] != channels or not min(image.shape):
        raise DataError(
            f"an image must have the shape {what}, not {image.shape}",
            hint=_as_shape(image.shape, channels),
        )


def _as_array(image: Any) -> str:
    if isinstance(image, Image.Image):
        return 'numpy.asarray(image.convert("RGB")) is one'
    return (
        "jaxseg.predict.predict_files segments files"
        if hasattr(image, "__fspath__") or isinstance(image, str)
        else ""
    )


def _as_shape(shape: tuple[int, ...], channels: int) -> str:
    """How an array of another shape becomes an image, "" where that is not clear."""
    if len(shape) == 2 and min(shape):
        return (
            "image[..., None] has an axis of channels"
            if channels == 1
            else f"numpy.stack([image] * {channels}, -1) repeats grey"
        )
    if len(shape) == 3 and shape[0] == channels:
        return "image.transpose(1, 2, 0) has its channels last"
    return (
        "image[..., :3] leaves the transparency out" if shape[2:] == (4,) and channels == 3 else ""
    )
