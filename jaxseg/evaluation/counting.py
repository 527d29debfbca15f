"""The confusion matrix of a split.

Whole images of equal size share a batch [D, B, h, w, C]; the last batch of a size is filled with
copies whose labels are all 255 and therefore not counted. Sliding windows are distributed over the
devices, B on each. Of n processes, each takes every n-th image, and their counts are added. Threads
read ahead while the devices compute.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxseg.constants import IGNORE
from jaxseg.errors import DataError
from jaxseg.evaluation.programs import Devices, compiled_program, count_pixels
from jaxseg.evaluation.samples import (
    READERS,
    Indexed,
    Sample,
    Samples,
    group_by_shape,
    read_samples,
    visit_order,
    with_views,
)
from jaxseg.inference.settings import TestSettings
from jaxseg.inference.slide import Item, predict_slide
from jaxseg.inference.whole import Model
from jaxseg.parallel import show_progress
from jaxseg.replication import replicate

log = logging.getLogger(__name__)

OnPrediction = Callable[[int, Sample, Callable[[], np.ndarray]], None]
Place = tuple[int, ...]


class Counts(NamedTuple):
    """The result of counting a split.

    Attributes:
        confusion: Confusion matrix, int64 [K, K].
        nonfinite_pixels: Number of pixels with a class score that is not finite.
    """

    confusion: np.ndarray
    nonfinite_pixels: int


class BatchResult(NamedTuple):
    """The result of a batch; arrays are on the devices.

    Attributes:
        confusion: Confusion matrices, int32 [..., K, K].
        ids: Class ids, int32 [..., H, W].
        nonfinite: Number of pixels of each image with a class score that is not finite, int32
            [...].
        images: (index, sample, its position in `ids` and `nonfinite`); other positions hold copies
            that fill the batch.
    """

    confusion: jax.Array
    ids: jax.Array
    nonfinite: jax.Array
    images: Sequence[tuple[int, Sample, Place]]


def compute_confusion(
    model: Model,
    variables: Any,
    settings: TestSettings,
    samples: Samples,
    *,
    devices: Sequence[jax.Device] | None = None,
    on_prediction: OnPrediction | None = None,
    progress: bool = False,
) -> Counts:
    """Count the predictions for every sample of a split, over all processes.

    A warning names the images with class scores that are not finite. Calls with the same model
    object, settings and devices share compiled code.

    Args:
        model: The model.
        variables: The model's variables, on the host or on devices.
        settings: Test-time settings.
        samples: The split; K is the number of classes in its `spec`.
        devices: The local devices to use; all by default.
        on_prediction: Called as `on_prediction(index, sample, prediction)` for every image of this
            process; `prediction()` fetches its class ids, int32 [H, W].
        progress: Whether to show a progress bar on a terminal.

    Returns:
        The counts.

    Raises:
        DataError: A label is neither a class nor 255, or the model has another number of classes.
    """
    local = tuple(jax.local_devices() if devices is None else devices)
    num_classes = len(samples.spec.classes)
    per_batch = len(local) * settings.batch_size
    order = visit_order(samples, group=settings.mode == "whole")
    stream = with_views(
        read_samples(samples, order, READERS + per_batch), num_classes, settings.scales
    )
    program = partial(compiled_program(model, settings, local), replicate(variables, local))
    run_batches = _run_whole if settings.mode == "whole" else _run_slide
    results = run_batches(program, stream, local, settings)
    if progress:
        results = show_progress(
            results, "evaluating", len(order), size=lambda result: len(result.images)
        )

    confusion = np.zeros((num_classes, num_classes), np.int64)
    nonfinite_images: dict[str, int] = {}
    for result in _prefetch_one(results):
        check_classes(result.confusion.shape[-1], samples.spec.name, num_classes)
        counts = np.asarray(result.confusion, np.int64)
        confusion += counts.reshape(-1, num_classes, num_classes).sum(0)
        nonfinite = np.asarray(result.nonfinite)
        for index, sample, place in result.images:
            if count := int(nonfinite[place]):
                name = sample["name"]
                nonfinite_images[name] = nonfinite_images.get(name, 0) + count
            if on_prediction:
                on_prediction(index, sample, partial(_fetch, result.ids, place))
    _warn_of_nonfinite(nonfinite_images)
    total = sum_over_processes(np.append(confusion, sum(nonfinite_images.values())))
    return Counts(total[:-1].reshape(confusion.shape), int(total[-1]))


def check_classes(of_model: int, spec_name: str, of_data: int) -> None:
    """Raise DataError if the model's number of classes differs from the data set's."""
    if of_model != of_data:
        raise DataError(
            f"the model has {of_model} classes, the data set {spec_name!r} has {of_data}",
            field="eval.dataset",
            hint="evaluate on a data set with the classes of the training data",
        )


def _fetch(ids: jax.Array, place: Place) -> np.ndarray:
    return np.asarray(ids[place])


def _warn_of_nonfinite(images: dict[str, int]) -> None:
    """Warn of pixels without a meaningful class in the images of this process."""
    if not images:
        return
    first = next(iter(images))
    more = f" and {len(images) - 1} more images" if len(images) > 1 else ""
    log.warning(
        "the class scores of %d pixels are NaN or infinite (in %s%s), so their classes are "
        "meaningless; if config.precision is float16, set it to float32 or bfloat16",
        sum(images.values()),
        first,
        more,
    )


# --- Batches --------------------------------------------------------------------------------------


def _run_whole(
    program: Callable[..., Any], stream: Iterable[Indexed], devices: Devices, settings: TestSettings
) -> Iterator[BatchResult]:
    """Run batches of whole images of one size."""
    per_device = settings.batch_size
    size = len(devices) * per_device
    for group in group_by_shape(stream, size):
        views = [np.stack(view) for view in zip(*(sample["views"] for _, sample in group))]
        labels = np.stack([sample["label"] for _, sample in group])
        missing = size - len(group)
        if missing:
            views = [np.concatenate([view, np.repeat(view[-1:], missing, 0)]) for view in views]
            ignored = np.full((missing, *labels.shape[1:]), IGNORE, labels.dtype)
            labels = np.concatenate([labels, ignored])
        batch = jax.tree.map(
            lambda x: x.reshape(len(devices), per_device, *x.shape[1:]), (views, labels)
        )
        images = [(index, sample, divmod(i, per_device)) for i, (index, sample) in enumerate(group)]
        confusion, ids, nonfinite = program(batch)
        yield BatchResult(confusion, ids, nonfinite, images)


def _run_slide(
    program: Callable[..., Any], stream: Iterable[Indexed], devices: Devices, settings: TestSettings
) -> Iterator[BatchResult]:
    """Run windows of consecutive images, and yield the result of each image."""
    waiting: deque[Indexed] = deque()

    def items() -> Iterator[Item]:
        for index, sample in stream:
            waiting.append((index, sample))
            yield sample["views"], sample["label"].shape

    def call(windows: np.ndarray) -> jax.Array:
        logits = program(windows.reshape(len(devices), -1, *windows.shape[1:]))
        # Windows are summed on one device.
        return jax.device_put(logits, devices[0]).reshape(len(windows), *logits.shape[2:])

    for scores in predict_slide(call, settings, items(), len(devices)):
        index, sample = waiting.popleft()
        confusion, ids, nonfinite = count_pixels(scores, sample["label"])
        yield BatchResult(confusion, ids, nonfinite, [(index, sample, ())])


def _prefetch_one(results: Iterable[BatchResult]) -> Iterator[BatchResult]:
    """Yield each result after the next one is started, so that the devices stay busy."""
    previous = None
    for result in results:
        if previous is not None:
            yield previous
        previous = result
    if previous is not None:
        yield previous


# --- Processes ------------------------------------------------------------------------------------


def sum_over_processes(counts: np.ndarray) -> np.ndarray:
    """Add up the non-negative int64 counts of all processes, exactly.

    Args:
        counts: Counts of this process.

    Returns:
        The sums, int64; with a single process `counts` itself.
    """
    if jax.process_count() == 1:
        return counts
    # JAX transfers int32 without x64, so the counts are split into 31-bit digits.
    digits = np.stack([counts >> 31, counts & (2**31 - 1)]).astype(np.int32)
    gathered = np.asarray(multihost_utils.process_allgather(digits)).astype(np.int64)
    high, low = gathered.sum(0)
    return (high << 31) + low
