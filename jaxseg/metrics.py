"""Metrics of semantic segmentation: count first, divide at the end.

Pixels are counted in integers on the device, summed in int64 on the host, and divided once. All
metrics are computed from one confusion matrix [K, K] (row: the truth, column: the prediction), so
the order of images and the number of devices do not matter.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.errors import DataError


def confusion_matrix(prediction: jax.Array, label: jax.Array, num_classes: int) -> jax.Array:
    """Count the pairs of true and predicted class.

    Args:
        prediction: Class ids, integers [...].
        label: True class ids, integers [...], 255 = ignore. Pixels with a label below 0 or above
            K - 1 do not count.
        num_classes: Number of classes K.

    Returns:
        int32 [K, K]: entry (t, p) is the number of pixels of true class t predicted as p.
    """
    label = label.reshape(-1).astype(jnp.int32)
    prediction = prediction.reshape(-1).astype(jnp.int32)
    counted = (label >= 0) & (label < num_classes)
    cells = num_classes * num_classes
    # Ignored pixels go to an extra cell that is dropped, which is cheaper than weights and keeps
    # integers.
    cell = jnp.where(counted, label * num_classes + prediction, cells)
    return jnp.bincount(cell, length=cells + 1)[:cells].reshape(num_classes, num_classes)


def summarize(confusion: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Compute the metrics of a confusion matrix.

    As in MMSegmentation, means leave out only the classes whose value is undefined. A class that is
    predicted but absent from the truth has IoU 0 and counts; a class absent from both does not. The
    F-score (unlike Dice) of a class without a single hit is undefined.

    Args:
        confusion: Counts, integers [K, K].
        classes: The K class names.

    Returns:
        mIoU, aAcc, mAcc, mDice, mFscore, mPrecision and mRecall as fractions, None where undefined,
        and per_class {name: {IoU, Acc, Dice, Fscore, Precision, Recall, pixels, predicted}}; the
        last two are pixel counts of the truth and of the prediction.

    Raises:
        DataError: The shape of the matrix does not match the number of classes.
    """
    confusion = np.asarray(confusion, np.int64)
    if confusion.shape != (len(classes), len(classes)):
        raise DataError(
            f"confusion matrix of shape {confusion.shape} does not fit {len(classes)} classes",
            field="confusion",
        )
    hits, truth, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision, recall = hits / predicted, hits / truth
        columns = {
            "IoU": hits / (truth + predicted - hits),
            "Acc": recall,
            "Dice": 2 * hits / (truth + predicted),
            "Fscore": 2 * precision * recall / (precision + recall),
            "Precision": precision,
            "Recall": recall,
        }
    summary: dict[str, Any] = {f"m{name}": _mean(values) for name, values in columns.items()}
    summary["aAcc"] = float(hits.sum() / truth.sum()) if truth.sum() else None
    summary["per_class"] = {
        name: {key: _number(values[k]) for key, values in columns.items()}
        | {"pixels": int(truth[k]), "predicted": int(predicted[k])}
        for k, name in enumerate(classes)
    }
    return summary


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _mean(values: np.ndarray) -> float | None:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else None


def format_table(summary: Mapping[str, Any]) -> str:
    """Format metrics as a text table: IoU, Acc and true pixels of each class, then the means.

    Args:
        summary: The result of `summarize`; fractions are shown in percent.

    Returns:
        The table, without a final newline.
    """
    rows = [("class", "IoU", "Acc", "pixels", "")]
    for name, row in summary["per_class"].items():
        pixels = f"{row['pixels']:,}"
        rows.append((name, _percent(row["IoU"]), _percent(row["Acc"]), pixels, _note(row)))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [_line(row, widths) for row in rows]
    rule = "-" * (sum(widths) + 6)
    keys = ("mIoU", "aAcc", "mAcc", "mDice")
    means = "  ".join(f"{key} {_percent(summary[key])}" for key in keys)
    return "\n".join([lines[0], rule, *lines[1:], rule, means])


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def _note(row: Mapping[str, Any]) -> str:
    if row["pixels"]:
        return ""
    return "absent from the ground truth" + (", yet predicted" if row["predicted"] else "")


def _line(row: tuple[str, ...], widths: Sequence[int]) -> str:
    name, *numbers, note = row
    aligned = [value.rjust(width) for value, width in zip(numbers, widths[1:])]
    return "  ".join([name.ljust(widths[0]), *aligned, note]).rstrip()
