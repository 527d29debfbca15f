"""Pixels of each class in every label, and class weights and repeat factors from them."""

import logging
from pathlib import Path

import cv2
import numpy as np

from jaxseg.constants import IGNORE
from jaxseg.data.sources import Source
from jaxseg.errors import JaxsegError
from jaxseg.files import atomic_path, cache_dir
from jaxseg.parallel import ordered_map

log = logging.getLogger(__name__)

EXACT = 2**24  # OpenCV counts in float32, which holds every whole number up to this one


def count_labels(source: Source, num_classes: int, *, progress: bool = False) -> np.ndarray:
    """Count the pixels of each class in every label of a source.

    Every label is read once, in parallel. The counts are kept in the user's cache until a label
    changes.

    Args:
        source: Labels.
        num_classes: Number of classes K.
        progress: Show a progress bar on a terminal.

    Returns:
        int64 [N, K + 1]; the last column counts 255.

    Raises:
        DataError: A label is damaged or holds an unknown value.
    """
    file = _cache_file(source, num_classes)
    if (stored := _load(file, (len(source), num_classes + 1))) is not None:
        return stored

    def count(index: int) -> np.ndarray:
        return count_pixels(source.read_label(index), num_classes)

    counts = np.stack(list(ordered_map(count, range(len(source)), "counting labels", progress)))
    save_counts(source, counts)
    return counts


def count_pixels(label: np.ndarray, num_classes: int) -> np.ndarray:
    """Count the pixels of each class, and of 255, in a label.

    Args:
        label: uint8 [H, W].
        num_classes: Number of classes K.

    Returns:
        int64 [K + 1]; the last number counts 255.
    """
    rows = max(EXACT // label.shape[1], 1)
    counts = np.zeros(256, np.int64)
    for top in range(0, len(label), rows):
        strip = cv2.calcHist([label[top : top + rows]], [0], None, [256], [0, 256])
        counts += strip.ravel().astype(np.int64)
    return np.append(counts[:num_classes], counts[IGNORE])


def save_counts(source: Source, counts: np.ndarray) -> None:
    """Keep the counts of a source in the cache; log a warning if it cannot be written.

    Args:
        source: Labels.
        counts: int64 [N, K + 1], as from `count_labels`.
    """
    file = _cache_file(source, counts.shape[1] - 1)
    try:
        with atomic_path(file) as part:
            np.savez_compressed(part, counts=counts)
    except JaxsegError as error:
        log.warning("%s: labels will be counted again; set JAXSEG_CACHE to another folder", error)


def _cache_file(source: Source, num_classes: int) -> Path:
    return cache_dir() / "labels" / f"{source.fingerprint()}-{num_classes}.npz"


def _load(file: Path, shape: tuple[int, int]) -> np.ndarray | None:
    """Return cached counts of this shape, None if there are none."""
    try:
        with file.open("rb") as stream, np.load(stream) as stored:
            counts = stored["counts"]
    except Exception:  # no such file, or a damaged one: NumPy raises errors of any kind
        return None
    return counts if counts.shape == shape else None


# --- Weights and factors ---


def class_weights(counts: np.ndarray) -> tuple[float, ...]:
    """Return loss weights that favour rare classes: ENet's 1 / ln(1.02 + p), arXiv:1606.02147.

    p is the share of a class's pixels. The mean over the classes that occur is 1, so that the loss
    keeps its magnitude; a class that does not occur gets 1.

    Args:
        counts: Pixels of each class [K], 255 left out.
    """
    counts = np.asarray(counts, np.float64)
    weights, present = np.ones(len(counts)), counts > 0
    if present.any():
        found = 1 / np.log(1.02 + counts[present] / counts.sum())
        weights[present] = found / found.mean()
    return tuple(weights.tolist())


def repeat_factors(counts: np.ndarray, threshold: float) -> np.ndarray:
    """Return how often an epoch shows each image, by repeat-factor sampling.

    LVIS, arXiv:1908.03195: a class in a share f of the images has the factor
    max(1, sqrt(threshold / f)); an image has the largest factor of its classes, rounded. With
    threshold 0 every factor is 1.

    Args:
        counts: Pixels [N, K] of each class, 255 left out.
        threshold: Share of the images below which a class is repeated.

    Returns:
        int64 [N].
    """
    held = np.asarray(counts) > 0
    share = held.mean(0)
    wanted = np.sqrt(threshold / np.where(share > 0, share, 1.0)).clip(min=1)
    return np.rint(np.where(held, wanted, 1.0).max(1)).astype(np.int64)
