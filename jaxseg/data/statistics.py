"""Mean and standard deviation of the images' channels, and their file `statistics.json`."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxseg.data.decode import Decoded
from jaxseg.data.sources import Source
from jaxseg.data.values import check_finite
from jaxseg.errors import DataError, JaxsegError
from jaxseg.files import expand, read_json, write_json
from jaxseg.parallel import evenly_spaced, ordered_map

log = logging.getLogger(__name__)

NAME = "statistics.json"
Statistics = tuple[tuple[float, ...], tuple[float, ...]]


def image_statistics(source: Source, samples: int = 1000, *, progress: bool = False) -> Statistics:
    """Compute mean and standard deviation of every channel over the pixels of a source.

    Works for any dtype and number of channels, in float64. Pixels without data are left out. A
    constant channel gets standard deviation 1, so that normalising makes it 0 instead of NaN.

    Args:
        source: The images.
        samples: Largest number of images to read, evenly spread over the source.
        progress: Show a progress bar on a terminal.

    Returns:
        (mean, std), one number per channel each, in the images' own units.

    Raises:
        DataError: An image cannot be read, or holds NaN or infinity.
    """

    def moments(index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        image = source.read_decoded(index)
        check_finite(image.filled(), source.files[index])
        channels = [_valid(image, channel) for channel in range(image.pixels.shape[-1])]
        means = np.array([channel.mean() if channel.size else 0.0 for channel in channels])
        squares = [np.square(channel - mean).sum() for channel, mean in zip(channels, means)]
        return np.array([channel.size for channel in channels]), means, np.array(squares)

    count: np.ndarray = np.zeros((), np.int64)
    mean: np.ndarray = np.zeros(())
    square: np.ndarray = np.zeros(())
    indices = evenly_spaced(len(source), samples)
    # Sums of squared deviations are combined (Chan et al. 1979): the mean of squares would lose all
    # digits of small deviations from a large mean.
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
    """Return the values of a channel that are data: float64 [N]."""
    values = image.pixels[..., channel]
    if image.missing is not None:
        values = values[~image.missing[..., channel]]
    return values.ravel().astype(np.float64)


def write_statistics(root: str | Path, mean: Sequence[float], std: Sequence[float]) -> Path:
    """Write `statistics.json` into the folder of a data set, where training reads it.

    Args:
        root: The folder; it must exist.
        mean: Mean per channel.
        std: Standard deviation per channel.

    Returns:
        The file.

    Raises:
        DataError: It cannot be written.
    """
    file = expand(root) / NAME
    hint = (
        f"make its folder writable, or set config.dataset.image_mean={format_tuple(mean)} and "
        f"config.dataset.image_std={format_tuple(std)}"
    )
    if not file.parent.is_dir():
        raise DataError("cannot be written: its folder does not exist", file=file, hint=hint)
    try:
        write_json(file, {"mean": list(mean), "std": list(std)})
    except JaxsegError as error:
        raise DataError(error.problem, file=file, hint=hint) from None
    return file


def format_tuple(values: Sequence[float]) -> str:
    """Format numbers as a tuple that a config override accepts: '(0.5,1.25)'."""
    comma = "," if len(values) == 1 else ""
    return f"({','.join(f'{value:.6g}' for value in values)}{comma})"


def read_statistics(root: str | Path, channels: int = 0) -> Statistics | None:
    """Read `statistics.json` from the folder of a data set.

    Args:
        root: The folder; "" for none.
        channels: The number of channels that it must have; 0 for any.

    Returns:
        (mean, std), or None if there is no such file.

    Raises:
        DataError: The file is malformed, or has another number of channels.
    """
    file = expand(root) / NAME
    if not root or not file.is_file():
        return None
    try:
        stored = read_json(file)
        mean, std = (tuple(float(value) for value in stored[key]) for key in ("mean", "std"))
        wrong = _problem(mean, std, channels)
    except DataError as error:
        wrong = error.problem
    except KeyError as error:
        wrong = f"no key {error}"
    except (ValueError, TypeError) as error:
        wrong = str(error)
    if wrong:
        raise DataError(
            wrong,
            file=file,
            hint='it must read {"mean": [...], "std": [...]}, one number per channel each: correct '
            "it, or write it again with scripts/check_data.py",
        )
    return mean, std


def _problem(mean: Sequence[float], std: Sequence[float], channels: int) -> str:
    """Return what is wrong with statistics, "" for nothing."""
    if not mean or len(mean) != len(std):
        return f"{len(mean)} means and {len(std)} stds"
    if channels not in (0, len(mean)):
        return f"{len(mean)} channels, but config.dataset.channels={channels}"
    for value in (*mean, *std):
        if not math.isfinite(value):
            return f"holds {value}"
    for value in std:
        if value <= 0:
            return f"std {value} is not above 0"
    return ""
