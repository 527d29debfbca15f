"""Checks of the images that a model is given for prediction, and masks of their missing data."""

from typing import Any

import jax
import numpy as np
from PIL import Image

from jaxseg.config.schema import DatasetConfig
from jaxseg.data.decode import mark_missing
from jaxseg.data.values import check_finite
from jaxseg.errors import DataError, ImageTypeError

FINITE_HINT = (
    "if it stands for missing data, set config.dataset.nodata={value}, or give "
    "numpy.ma.masked_invalid(image)"
)


def prepare_image(image: Any, dataset: DatasetConfig) -> tuple[np.ndarray, np.ndarray | None]:
    """Check an image given for prediction, and fill in missing data as in training.

    Args:
        image: [H, W, C] of `dataset.dtype`. Values that are masked in a masked array, or listed in
            `dataset.nodata`, are missing.
        dataset: The data that the model was trained on.

    Returns:
        The pixels [H, W, C], and bool [H, W], True where no channel holds data, or None if there is
        no such pixel.

    Raises:
        DataError: The image is not of the kind that the model was trained on, or holds NaN or
            infinity.
    """
    check_image(image, dataset.channels, dataset.dtype)
    decoded = mark_missing(np.asarray(image), tuple(dataset.nodata))
    if np.ma.is_masked(image):
        masked = np.ma.getmaskarray(image)
        if decoded.missing is not None:
            masked = decoded.missing | masked
        decoded = decoded._replace(missing=masked)
    pixels = decoded.filled(dataset.image_mean)
    check_finite(pixels, "", FINITE_HINT)
    return pixels, decoded.empty


def check_image(image: Any, channels: int, expected: str = "uint8") -> None:
    """Refuse an argument unless it is an image like those that the model was trained on.

    Args:
        image: The argument; a NumPy or JAX array [H, W, channels] is expected.
        channels: Number of channels C.
        expected: Name of the dtype.

    Raises:
        ImageTypeError: It is not an array, or has another dtype.
        DataError: It has another shape, or is empty.
    """
    wanted = f"[H, W, {channels}]{' (RGB)' if channels == 3 else ''}"
    if not isinstance(image, np.ndarray | jax.Array):
        raise ImageTypeError(
            f"an image must be a numpy array {expected} {wanted}, not {type(image).__name__}",
            hint=_conversion_hint(image),
        )
    if image.dtype.newbyteorder("=") != expected:
        values = "values like those it was trained on"
        if expected == "uint8":
            values = "its values 0..255 as they are in the file"
        raise ImageTypeError(
            f"the model takes images of {expected}, not {image.dtype} (shape {image.shape})",
            hint=f"give it {values}; it normalises them itself",
        )
    problem = f"an image must have the shape {wanted}, not {image.shape}"
    if image.ndim == 4:
        raise DataError(problem, hint="give several as a list")
    if image.ndim != 3 or image.shape[2] != channels or not min(image.shape):
        raise DataError(problem, hint=_shape_hint(image.shape, channels))


def _conversion_hint(image: Any) -> str:
    """Return how to turn an object into an array, "" if that is not clear."""
    if isinstance(image, Image.Image):
        return 'numpy.asarray(image.convert("RGB")) is one'
    if hasattr(image, "__fspath__") or isinstance(image, str):
        return "jaxseg.inference.files.predict_files segments files"
    return ""


def _shape_hint(shape: tuple[int, ...], channels: int) -> str:
    """Return how to turn an array of another shape into an image, "" if that is not clear."""
    if len(shape) == 2 and min(shape):
        if channels == 1:
            return "image[..., None] has an axis of channels"
        return f"numpy.stack([image] * {channels}, -1) repeats grey"
    if len(shape) == 3 and shape[0] == channels:
        return "image.transpose(1, 2, 0) has its channels last"
    if shape[2:] == (4,) and channels == 3:
        return "image[..., :3] leaves the transparency out"
    return ""
