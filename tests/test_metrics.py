"""Metrics equal a brute-force count, pixel by pixel and class by class."""

import json

import jax
import numpy as np
import pytest

from jaxseg import metrics
from jaxseg.errors import DataError


def brute_force(prediction, label, num_classes):
    """Every metric from sets of pixels, without a confusion matrix."""
    keep = label != 255
    prediction, label = prediction[keep], label[keep]
    rows = {"IoU": [], "Acc": [], "Dice": [], "Fscore": [], "Precision": [], "Recall": []}
    for k in range(num_classes):
        p, t = prediction == k, label == k
        both, either = np.sum(p & t), np.sum(p | t)
        precision = both / p.sum() if p.any() else np.nan
        recall = both / t.sum() if t.any() else np.nan
        rows["IoU"].append(both / either if either else np.nan)
        rows["Acc"].append(recall)
        rows["Dice"].append(2 * both / (p.sum() + t.sum()) if either else np.nan)
        rows["Fscore"].append(2 * precision * recall / (precision + recall) if both else np.nan)
        rows["Precision"].append(precision)
        rows["Recall"].append(recall)
    return rows, float(np.mean(prediction == label))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_equals_brute_force(seed):
    rng = np.random.default_rng(seed)
    classes = tuple("abcdefg")
    label = rng.choice([0, 1, 2, 4, 255], size=(3, 16, 20))  # 3, 5 and 6 are absent from the truth
    prediction = np.where(
        rng.random(label.shape) < 0.6, np.minimum(label, 5), rng.integers(0, 6, label.shape)
    )
    prediction[prediction == 4] = 2  # 4 is never found; 6 is absent from both
    confusion = jax.jit(metrics.confusion_matrix, static_argnums=2)(prediction, label, 7)
    assert confusion.dtype == np.int32
    summary = metrics.summarize(np.asarray(confusion), classes)
    expected, accuracy = brute_force(prediction, label, 7)
    assert summary["aAcc"] == pytest.approx(accuracy)
    for name, values in expected.items():
        assert summary[f"m{name}"] == pytest.approx(np.nanmean(values))
        for k, value in enumerate(values):
            found = summary["per_class"][classes[k]][name]
            assert found is None if np.isnan(value) else found == pytest.approx(value)
    assert summary["per_class"]["d"]["IoU"] == 0 and summary["per_class"]["g"]["IoU"] is None
    assert summary["per_class"]["a"]["pixels"] == np.sum(label == 0)
    json.dumps(summary, allow_nan=False)


def test_masked_pixels_equal_slicing():
    rng = np.random.default_rng(0)
    label, prediction = rng.integers(0, 3, (2, 8, 8)), rng.integers(0, 3, (2, 8, 8))
    masked = label.copy()
    masked[:, 5:] = 255
    whole = metrics.confusion_matrix(prediction, masked, 3)
    sliced = metrics.confusion_matrix(prediction[:, :5], label[:, :5], 3)
    np.testing.assert_array_equal(whole, sliced)
    assert np.asarray(metrics.confusion_matrix(prediction, np.full_like(label, 255), 3)).sum() == 0


def test_counts_beyond_int32_on_the_host():
    confusion = np.full((2, 2), 3_000_000_000, np.int64)
    summary = metrics.summarize(confusion, ("a", "b"))
    assert summary["per_class"]["a"]["pixels"] == 6_000_000_000
    assert summary["mIoU"] == pytest.approx(1 / 3)


def test_nothing_to_count():
    summary = metrics.summarize(np.zeros((2, 2), np.int64), ("a", "b"))
    assert summary["mIoU"] is None and summary["aAcc"] is None
    assert "absent" in metrics.format_table(summary)


def test_wrong_number_of_classes():
    with pytest.raises(DataError) as error:
        metrics.summarize(np.zeros((2, 2), np.int64), ("a", "b", "c"))
    assert error.value.field == "confusion"


def test_table_names_absent_classes():
    confusion = np.array([[90, 10, 0, 0], [0, 50, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    confusion[0, 2] = 5
    table = metrics.format_table(metrics.summarize(confusion, ("road", "car", "bus", "train")))
    lines = {line.split()[0]: line for line in table.splitlines()}
    assert "85.71" in lines["road"] and "105" in lines["road"] and "absent" not in lines["car"]
    assert (
        lines["bus"].endswith("absent from the ground truth, yet predicted")
        and " 0.00" in lines["bus"]
    )
    assert lines["train"].endswith("absent from the ground truth")
    assert "mIoU" in table.splitlines()[-1]
