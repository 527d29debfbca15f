"""How many pixels of every class the labels hold, and what follows from it: class weights, how often to repeat an image."""

import logging
import os
import tempfile
from pathlib import Path

import cv2
import numpy as np

from jaxseg.constants import IGNORE
from jaxseg.data.sources import Source
from jaxseg.files import cache_dir
from jaxseg.parallel import ordered_map

log = logging.getLogger(__name__)

EXACT = 2**24  # OpenCV counts in float32, which holds every whole number up to this one


def count_labels(source: Source, num_classes: int, *, progress: bool = False) -> np.ndarray:
    """Pixels of every class in every label of a source: int64 [N, num_classes + 1], the last column those of 255.

    Every label is read once, in parallel, and the counts are kept in the user's cache until a label changes. progress:
    one live line on a terminal. Raises DataError for a label that is damaged or holds an unknown value.
    """
    file = cache_dir() / "labels" / f"{source.fingerprint()}-{num_classes}.npz"
    if (counts := _load(file, (len(source), num_classes + 1))) is not None:
        return counts

    def count(index: int) -> np.ndarray:
        return count_pixels(source.read_label(index), num_classes)

    counts = np.stack(list(ordered_map(count, range(len(source)), "counting labels", progress)))
    save_counts(source, counts)
    return counts


def count_pixels(label: np.ndarray, num_classes: int) -> np.ndarray:
    """Pixels of every class and of 255 in a label uint8 [H, W]: int64 [num_classes + 1]."""
    rows = max(EXACT // label.shape[1], 1)
    strips = (label[top : top + rows] for top in range(0, len(label), rows))
    counts = sum(
        cv2.calcHist([strip], [0], None, [256], [0, 256]).astype(np.int64) for strip in strips
    ).ravel()
    return np.append(counts[:num_classes], counts[IGNORE])


def save_counts(source: Source, counts: np.ndarray) -> None:
    """Keep what `count_labels` gives for this source; where the cache cannot be written, a warning tells."""
    file = cache_dir() / "labels" / f"{source.fingerprint()}-{counts.shape[1] - 1}.npz"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".tmp", delete=False) as part:
            np.savez_compressed(part, counts=counts)
        os.replace(part.name, file)  # never half a file, whoever writes it besides
    except OSError as error:
        log.warning(
            "%s: cannot be written (%s): labels will be counted anew; set JAXSEG_CACHE to another folder",
            file,
            error.strerror,
        )


def _load(file: Path, shape: tuple[int, int]) -> np.ndarray | None:
    try:
        with file.open("rb") as stream, np.load(stream) as stored:
            counts = stored["counts"]
    except Exception:  # no such file, or a damaged one: NumPy raises whatever its parsing runs into
        return None
    return counts if counts.shape == shape else None


# --- What follows -----------------------------------------------------------------------------------------------------


def class_weights(counts: np.ndarray) -> tuple[float, ...]:
    """Loss weights that favour rare classes: ENet's 1 / ln(1.02 + p), arXiv:1606.02147, p the share of a class's pixels.

    counts: pixels of every class [K] (255 left out). The mean over the classes that occur is 1, so that the loss keeps
    its size; a class that does not occur gets 1.
    """
    counts = np.asarray(counts, np.float64)
    weights, present = np.ones(len(counts)), counts > 0
    if present.any():
        found = 1 / np.log(1.02 + counts[present] / counts.sum())
        weights[present] = found / found.mean()
    return tuple(weights.tolist())


def repeat_factors(counts: np.ndarray, threshold: float) -> np.ndarray:
    """How often to show every image an epoch, int64 [N], by repeat-factor sampling (LVIS, arXiv:1908.03195).

    counts: pixels [N, K] of every class (255 left out). A class in a share f of the images asks for
    max(1, sqrt(threshold / f)); an image follows the class that asks for most, rounded to a whole number. With threshold
    0 every factor is 1.
    """
    held = np.asarray(counts) > 0
    share = held.mean(0)
    wanted = np.sqrt(threshold / np.where(share > 0, share, 1.0)).clip(min=1)
    return np.rint(np.where(held, wanted, 1.0).max(1)).astype(np.int64)
