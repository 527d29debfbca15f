"""Metrics of semantic segmentation: count in integers on the device, sum in int64 on the host, divide once at the end.

Every figure follows from one confusion matrix [K, K] (row: the truth, column: the prediction), so images may come in
any order and on any number of devices.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.errors import DataError


def confusion_matrix(prediction: jax.Array, label: jax.Array, num_classes: int) -> jax.Array:
    """Counts [K, K] int32: entry (t, p) is the number of pixels of true class t predicted as p.

    prediction, label: integer arrays of one shape. Pixels with label 255 do not count, nor do labels of K and above.
    """
    label, prediction = (
        label.reshape(-1).astype(jnp.int32),
        prediction.reshape(-1).astype(jnp.int32),
    )
    counted = (label >= 0) & (label < num_classes)
    cells = num_classes * num_classes
    # Pixels that do not count go to one cell more, which is dropped: cheaper than weights, and still integers.
    cell = jnp.where(counted, label * num_classes + prediction, cells)
    return jnp.bincount(cell, length=cells + 1)[:cells].reshape(num_classes, num_classes)


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _mean(values: np.ndarray) -> float | None:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else None


def summarize(confusion: np.ndarray, classes: Sequence[str]) -> dict:
    """Metrics of a confusion matrix [K, K] as fractions, None where undefined.

    Returns mIoU, aAcc, mAcc, mDice, mFscore, mPrecision, mRecall, and per_class {name: {IoU, Acc, Dice, Fscore,
    Precision, Recall, pixels, predicted}}, the last two being pixel counts of the truth and of the prediction.
    As in MMSegmentation, means leave out undefined classes only: one absent from the truth but predicted has IoU 0 and
    counts, one absent from both does not; the F-score (not Dice) of a class without a single hit is undefined.
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
    summary = {f"m{name}": _mean(values) for name, values in columns.items()}
    summary["aAcc"] = float(hits.sum() / truth.sum()) if truth.sum() else None
    summary["per_class"] = {
        name: {key: _number(values[k]) for key, values in columns.items()}
        | {"pixels": int(truth[k]), "predicted": int(predicted[k])}
        for k, name in enumerate(classes)
    }
    return summary


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def format_table(summary: dict) -> str:
    """A text table of `summarize`'s result: IoU and Acc in percent and true pixels of each class, then the means."""
    rows = []
    for name, row in summary["per_class"].items():
        note = "" if row["pixels"] else "absent from the ground truth"
        note += ", yet predicted" if note and row["predicted"] else ""
        rows.append((name, _percent(row["IoU"]), _percent(row["Acc"]), f"{row['pixels']:,}", note))
    header = ("class", "IoU", "Acc", "pixels", "")
    wide = [max(len(row[i]) for row in [header, *rows]) for i in range(4)]

    def line(row):
        name, *numbers, note = row
        cells = [
            name.ljust(wide[0]),
            *(value.rjust(width) for value, width in zip(numbers, wide[1:])),
            note,
        ]
        return "  ".join(cells).rstrip()

    rule = "-" * (sum(wide) + 6)
    means = "  ".join(
        f"{key} {_percent(summary[key])}" for key in ("mIoU", "aAcc", "mAcc", "mDice")
    )
    return "\n".join([line(header), rule, *map(line, rows), rule, means])
