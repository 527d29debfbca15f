"""Checks of the values in images: finite numbers, none of which stands for missing data."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxseg.config.defaults import NO_NODATA
from jaxseg.errors import DataError

HUGE = 1e30  # no sensor's unit reaches this; ArcGIS writes -3.4e38, netCDF 9.97e36
SENTINELS = (-9999.0, -99999.0, -32768.0, -32767.0, -999.0)  # that programs write for missing data
FINITE_HINT = (
    "write a number there, and 255 into the label if the pixel means nothing; if it stands for "
    "missing data, set config.dataset.nodata={value}"
)


def check_finite(image: np.ndarray, file: str | Path, hint: str = FINITE_HINT) -> None:
    """Raise DataError if an image holds NaN or infinity.

    Args:
        image: [H, W, C] of any dtype.
        file: Named in the message.
        hint: What to do about a {value}.
    """
    if not np.issubdtype(image.dtype, np.floating):
        return
    finite = np.isfinite(image)
    if finite.all():
        return
    row, column, channel = np.argwhere(~finite)[0].tolist()
    value = image[row, column, channel]
    raise DataError(
        f"holds {value} ({np.count_nonzero(~finite)} values are NaN or infinite, the first at row "
        f"{row}, column {column}, channel {channel})",
        file=file,
        hint=hint.format(value=value),
    )


def check_range(image: np.ndarray, file: str | Path, nodata: Sequence[Any] = ()) -> None:
    """Refuse an image in which a value that stands for missing data was taken for a measurement.

    Such a value is far from all others and is repeated; a single pixel ruins mean and standard
    deviation only if it is huge. Images of 8 bits have no room for such a value. Values that
    are declared as missing data have been replaced before.

    Args:
        image: [H, W, C].
        file: Named in the message.
        nodata: `dataset.nodata`; ("none",) if every value is a measurement.

    Raises:
        DataError: With the value, where it is and how often.
    """
    if image.dtype == np.uint8 or tuple(nodata) == NO_NODATA:
        return
    for channel in range(image.shape[-1]):
        values = image[..., channel]
        for value in (float(values.min()), float(values.max())):
            held = values == value
            count, rest = int(np.count_nonzero(held)), values[~held]
            if not (rest.size and math.isfinite(value)):
                continue  # check_finite reports infinity
            if _is_outside(value, count, float(rest.min()), float(rest.max())):
                row, column = np.argwhere(held)[0].tolist()
                raise DataError(
                    f"holds {value:.9g} in {count} pixels of channel {channel} (first at row "
                    f"{row}, column {column}), far outside its other values",
                    file=file,
                    field="dataset.nodata",
                    hint=f"if it stands for missing data, set config.dataset.nodata={value:.9g} or "
                    "give the file its GDAL_NODATA tag; if it was measured, set "
                    "config.dataset.nodata=none",
                )


def _is_outside(value: float, count: int, low: float, high: float) -> bool:
    """Return whether an extreme value of a channel cannot be a measurement like the others.

    Args:
        value: The lowest or highest value of the channel.
        count: Number of its pixels.
        low: Lowest of the other values.
        high: Highest of the other values.
    """
    gap, spread = max(low - value, value - high), high - low
    if abs(value) >= HUGE:
        return gap > max(abs(low), abs(high))
    if value in SENTINELS:
        return count > 1 and gap > spread / 4
    return count > 1 and spread > 0 and gap > 10 * spread
