"""Metrics and pictures of a split."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxseg import visualize
from jaxseg.data.spec import DatasetSpec
from jaxseg.errors import DataError
from jaxseg.evaluation.counting import check_classes, compute_confusion
from jaxseg.evaluation.samples import Sample, Samples
from jaxseg.inference.settings import TestSettings
from jaxseg.inference.whole import Model
from jaxseg.metrics import summarize


def evaluate(
    model: Model,
    variables: Any,
    settings: TestSettings,
    samples: Samples,
    *,
    num_classes: int | None = None,
    devices: Sequence[jax.Device] | None = None,
    pictures: int = 0,
    save_picture: Callable[[str, np.ndarray], Any] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Evaluate a model on a split.

    Further evaluations with the same model object, settings and devices do not compile again.

    Args:
        model: `apply(variables, images, train=False)` returns (logits [B, h, w, K], further
            outputs).
        variables: The model's variables, on the host or on devices.
        settings: Test-time settings (`jaxseg.inference.settings.make_settings`).
        samples: The split (`jaxseg.data.pipeline.eval_samples`).
        num_classes: Number of classes of the model, to compare with the split before anything is
            read; None to compare the logits.
        devices: The local devices to use; all by default.
        pictures: Number of images, evenly spread over the split, to draw as panels [image | truth |
            prediction].
        save_picture: Called as `save_picture(name, panel)` with a panel uint8 [h, w, 3].
        progress: Whether to show a progress bar on a terminal.

    Returns:
        The dict of `metrics.summarize`, with `nonfinite_pixels` (pixels with class scores that are
        not finite, whose class is meaningless), `images`, `seconds` and `images_per_second`
        (including compilation) over all processes.

    Raises:
        DataError: There are no samples, a label is neither a class nor 255, or the model has
            another number of classes.
    """
    if not len(samples):
        raise DataError(
            "there is nothing to evaluate: the split holds no samples", field="dataset.val_split"
        )
    spec = samples.spec
    start = time.perf_counter()
    if num_classes is not None:
        check_classes(num_classes, spec.name, len(spec.classes))
    count = min(pictures, len(samples))
    wanted = set(np.linspace(0, len(samples) - 1, count, dtype=int).tolist())

    def draw_wanted(index: int, sample: Sample, prediction: Callable[[], np.ndarray]) -> None:
        if save_picture and index in wanted:
            save_picture(sample["name"], draw(sample, prediction(), spec))

    counts = compute_confusion(
        model,
        variables,
        settings,
        samples,
        devices=devices,
        on_prediction=draw_wanted,
        progress=progress,
    )
    seconds = time.perf_counter() - start
    return {
        **summarize(counts.confusion, spec.classes),
        "nonfinite_pixels": counts.nonfinite_pixels,
        "images": len(samples),
        "seconds": seconds,
        "images_per_second": len(samples) / seconds,
    }


def draw(sample: Sample, prediction: np.ndarray, spec: DatasetSpec) -> np.ndarray:
    """Draw the panel [image | truth | prediction] of a sample, RGB uint8 [h, w, 3]."""
    image = visualize.to_rgb(sample["image"])
    return visualize.panel(image, sample["label"], prediction, spec.palette, spec.classes)
