"""Mean and standard deviation of the images' channels, and the statistics.json of a data set that keeps them."""

import json
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxseg.data.decode import Decoded
from jaxseg.data.sources import Source
from jaxseg.data.values import check_finite
from jaxseg.errors import DataError
from jaxseg.files import expand, read_text
from jaxseg.parallel import evenly_spaced, ordered_map

log = logging.getLogger(__name__)

NAME = "statistics.json"
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
    indices = evenly_spaced(len(source), samples)
    # Sums of squared deviations are combined (Chan et al. 1979): the mean of squares would lose all digits of small ones.
    for more, means, squares in ordered_map(moments, indices, "reading images", progress):
        delta, total = means - mean, np.maximum(count + more, 1)
        square = square + squares + delta**2 * (count * more / total)
        count, mean = count + more, mean + delta * (more / total)
    std = np.sqrt(square / np.maximum(count, 1))
    if constant := np.flatnonzero(std == 0).tolist():
        log.warning(
            "channels %s hold one value in all %d images that were read; their std is set to 1",
            constant,
            len(indices),
        )
    return tuple(mean.tolist()), tuple(np.where(std == 0, 1.0, std).tolist())


def _valid(image: Decoded, channel: int) -> np.ndarray:
    """The values of a channel that are data: float64 [N]."""
    values = image.pixels[..., channel]
    return (
        values.ravel() if image.missing is None else values[~image.missing[..., channel]]
    ).astype(np.float64)


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
