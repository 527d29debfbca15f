"""Mean and standard deviation of the images' channels, and the statistics.json of a data set that keeps them."""

import json
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxseg.data.datasets import DataError
from jaxseg.data.decode import Decoded
from jaxseg.data.histogram import in_parallel, spread
from jaxseg.data.sources import Source
from jaxseg.files import expand, read_text

log = logging.getLogger(__name__)

NAME = "statistics.json"
HUGE = 1e30  # no sensor's unit reaches this; ArcGIS writes -3.4e38, netCDF 9.97e36
SENTINELS = (-9999.0, -99999.0, -32768.0, -32767.0, -999.0)  # what programs write where data are missing
Statistics = tuple[tuple[float, ...], tuple[float, ...]]


def image_statistics(source: Source, samples: int = 1000, *, progress: bool = False) -> Statistics:
    """(mean, std) of every channel over all pixels of at most `samples` images, evenly spread, in the images' own units.

    Any dtype and number of channels; computed in float64. Pixels without data are left out. A channel that is constant gets std 1, so that it becomes 0
    instead of NaN when it is normalised. Raises DataError for an image that cannot be read or holds NaN or infinity.
    """

    def moments(index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        image = source.read_decoded(index)
        check_finite(image.filled(), source.files[index])
        channels = [_valid(image, c) for c in range(image.pixels.shape[-1])]
        means = np.array([channel.mean() if channel.size else 0.0 for channel in channels])
        squares = [np.square(channel - mean).sum() for channel, mean in zip(channels, means)]
        return np.array([channel.size for channel in channels]), means, np.array(squares)

    count, mean, square = np.zeros((), np.int64), np.float64(0), np.float64(0)
    indices = spread(len(source), samples)
    # Sums of squared deviations are combined (Chan et al. 1979): the mean of squares would lose all digits of small ones.
    for more, means, squares in in_parallel(moments, indices, "reading images", progress):
        delta, total = means - mean, np.maximum(count + more, 1)
        square = square + squares + delta**2 * (count * more / total)
        count, mean = count + more, mean + delta * (more / total)
    std = np.sqrt(square / np.maximum(count, 1))
    if constant := np.flatnonzero(std == 0).tolist():
        log.warning("channels %s hold one value in all %d images that were read; their std is set to 1", constant, len(indices))
    return tuple(mean.tolist()), tuple(np.where(std == 0, 1.0, std).tolist())


def _valid(image: Decoded, channel: int) -> np.ndarray:
    """The values of a channel that are data: float64 [N]."""
    values = image.pixels[..., channel]
    return (values.ravel() if image.missing is None else values[~image.missing[..., channel]]).astype(np.float64)


FINITE_HINT = (
    "write a number there, and 255 into the label if the pixel means nothing; if it stands for missing data, say "
    "--config.dataset.nodata={value}"
)


def check_finite(image: np.ndarray, file: str | Path, hint: str = FINITE_HINT) -> None:
    """DataError, with this hint about a {value}, if an image holds NaN or infinity."""
    if np.issubdtype(image.dtype, np.floating) and not (finite := np.isfinite(image)).all():
        row, column, channel = np.argwhere(~finite)[0].tolist()
        value = image[row, column, channel]
        raise DataError(
            f"holds {value} ({np.count_nonzero(~finite)} values are NaN or infinite, the first at row {row}, "
            f"column {column}, channel {channel})", file=file, hint=hint.format(value=value),
        )  # fmt: skip


def check_range(image: np.ndarray, file: str | Path, nodata: Sequence[Any] = ()) -> None:
    """Refuse an image in which a value that stands for missing data was taken for a measurement.

    Such a value lies far from all others and is repeated; one alone ruins mean and standard deviation only if it is
    huge. Images of 8 bits have no room for one. Values that are declared as no data were replaced before.

    Args:
        image: [H, W, C].
        file: for the message.
        nodata: config.dataset.nodata; ("none",) if every value is a measurement.

    Raises:
        DataError: with the value, where it is and how often.
    """
    if image.dtype == np.uint8 or tuple(nodata) == ("none",):
        return
    for channel in range(image.shape[-1]):
        values = image[..., channel]
        for value in (float(values.min()), float(values.max())):
            held = values == value
            count, rest = int(np.count_nonzero(held)), values[~held]
            if not (rest.size and math.isfinite(value)):
                continue  # check_finite tells of infinity
            if _is_outside(value, count, float(rest.min()), float(rest.max())):
                row, column = np.argwhere(held)[0].tolist()
                raise DataError(
                    f"holds {value:.9g} in {count} pixels of channel {channel} (first at row {row}, column {column}), hugely "
                    "outside of its other values", file=file, field="dataset.nodata",
                    hint=f"if it stands for missing data, say --config.dataset.nodata={value:.9g} or give the file its "
                    "GDAL_NODATA tag; if it was measured, say --config.dataset.nodata=none",
                )  # fmt: skip


def _is_outside(value: float, count: int, low: float, high: float) -> bool:
    """Whether an extreme value of a channel, held by `count` pixels, cannot be a measurement like the others, `low` to `high`."""
    gap, spread = max(low - value, value - high), high - low
    if abs(value) >= HUGE:
        return gap > max(abs(low), abs(high))
    if value in SENTINELS:
        return count > 1 and gap > spread / 4
    return count > 1 and spread > 0 and gap > 10 * spread


def write_statistics(root: str | Path, mean: Sequence[float], std: Sequence[float]) -> Path:
    """Write root/statistics.json, which training reads; returns its path. DataError if it cannot be written."""
    file = expand(root) / NAME
    part = file.with_suffix(f".{os.getpid()}.tmp")
    try:
        part.write_text(json.dumps({"mean": list(mean), "std": list(std)}, indent=1) + "\n")
        os.replace(part, file)
    except OSError as error:
        raise DataError(
            f"{file}: cannot be written ({error.strerror}); make its folder writable, or give the values themselves: "
            f"--config.dataset.image_mean={as_flag(mean)} --config.dataset.image_std={as_flag(std)}."
        ) from None
    return file


def as_flag(values: Sequence[float]) -> str:
    """Numbers as an override on the command line: '(0.5,1.25)'."""
    return f"'({','.join(f'{value:.6g}' for value in values)}{',' * (len(values) == 1)})'"


def read_statistics(root: str | Path, channels: int = 0) -> Statistics | None:
    """(mean, std) of root/statistics.json, None if there is no such file. DataError if it is malformed or of other `channels`."""
    file = expand(root) / NAME
    if not root or not file.is_file():
        return None
    try:
        stored = json.loads(read_text(file))
        mean, std = (tuple(float(value) for value in stored[key]) for key in ("mean", "std"))
        wrong = _wrong(mean, std, channels)
    except DataError as error:
        wrong = error.problem
    except (ValueError, TypeError, KeyError) as error:
        wrong = f"no key {error}" if isinstance(error, KeyError) else str(error)
    if wrong:
        raise DataError(
            f'{file}: {wrong}; it must read {{"mean": [...], "std": [...]}}, one number a channel each: correct it, or write it '
            f"anew: python scripts/check_data.py --root={root}{f' --channels={channels}' * (channels not in (0, 3))} --statistics"
        )
    return mean, std


def _wrong(mean: Sequence[float], std: Sequence[float], channels: int) -> str:
    if not mean or len(mean) != len(std):
        return f"{len(mean)} means and {len(std)} stds"
    if channels not in (0, len(mean)):
        return f"{len(mean)} channels, but config.dataset.channels={channels}"
    bad = next((value for value in (*mean, *std) if not math.isfinite(value)), None)
    if bad is not None:
        return f"holds {bad}"
    low = next((value for value in std if value <= 0), None)
    return "" if low is None else f"std {low} is not above 0"
