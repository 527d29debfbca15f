"""Samples of a split: read them ahead, and group them into batches of images of equal size."""

import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import jax

from jaxseg.constants import IGNORE
from jaxseg.data.augment.transforms import scaled_views
from jaxseg.data.spec import DatasetSpec
from jaxseg.errors import DataError
from jaxseg.parallel import ordered_map

log = logging.getLogger(__name__)

READERS = 4  # threads that read samples

Sample = dict[str, Any]
Indexed = tuple[int, Sample]  # (number of the sample in the split, the sample)


class Samples(Protocol):
    """A labelled split, such as `jaxseg.data.pipeline.EvalSamples`.

    A sample is a dict: `image` [h, w, C] (uint8, uint16 or float32) resized for testing, `label`
    int [H, W] with 255 for ignored pixels, `name`, and optionally `views`, the image at each
    test-time scale. An optional method `shape(index) -> (h, w)` allows reading images of equal size
    one after the other.
    """

    @property
    def spec(self) -> DatasetSpec:
        """Classes and palette."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


def visit_order(samples: Samples, group: bool) -> list[int]:
    """Return the indices that this process evaluates.

    Args:
        samples: The split.
        group: Whether to visit images of equal size one after the other, if `samples` has the
            method `shape`.
    """
    order = range(jax.process_index(), len(samples), jax.process_count())
    if not group or not hasattr(samples, "shape"):
        return list(order)
    shapes = {i: tuple(samples.shape(i)) for i in order}
    sizes = len(set(shapes.values()))
    if sizes > 1:
        log.info(
            "the images have %d sizes, each of which compiles once (config.eval.mode='slide' "
            "compiles a single window size)",
            sizes,
        )
    return sorted(order, key=lambda i: (shapes[i], i))


def read_samples(samples: Samples, order: Sequence[int], ahead: int) -> Iterator[Indexed]:
    """Read samples in threads and yield them in order.

    Args:
        samples: The split.
        order: Indices of the samples.
        ahead: Largest number of samples that are being read or waiting.
    """
    return ordered_map(lambda index: (index, samples[index]), order, threads=READERS, ahead=ahead)


def with_views(
    stream: Iterable[Indexed], num_classes: int, scales: Sequence[float]
) -> Iterator[Indexed]:
    """Check the labels of samples, and add `views` where they are missing.

    Args:
        stream: The samples.
        num_classes: Number of classes.
        scales: Test-time scales.

    Yields:
        The samples.

    Raises:
        DataError: A label is neither a class nor 255.
    """
    for index, sample in stream:
        check_label(sample, num_classes)
        if "views" not in sample:
            sample = sample | {"views": scaled_views(sample["image"], (0, 0), scales)}
        yield index, sample


def check_label(sample: Sample, num_classes: int) -> None:
    """Raise DataError if a label is neither a class nor 255, since it would not be counted."""
    label = sample["label"]
    wrong = label[(label != IGNORE) & ((label < 0) | (label >= num_classes))]
    if wrong.size:
        raise DataError(
            f"the label of {sample['name']} holds {int(wrong[0])}, which is neither one of the "
            f"{num_classes} classes (0..{num_classes - 1}) nor {IGNORE} (ignore)",
            file=sample["name"],
        )


def group_by_shape(stream: Iterable[Indexed], size: int) -> Iterator[list[Indexed]]:
    """Group samples into lists of at most `size` with equal shapes of views and labels.

    A list that is not full is kept until the image size changes, so images of equal size should be
    consecutive.

    Args:
        stream: The samples.
        size: Largest number of samples in a list.

    Yields:
        The lists.
    """
    for _, run in itertools.groupby(stream, key=lambda item: item[1]["image"].shape):
        waiting: dict[tuple[Any, ...], list[Indexed]] = {}
        for item in run:
            key = (item[1]["label"].shape, *(view.shape for view in item[1]["views"]))
            group = waiting.setdefault(key, [])
            group.append(item)
            if len(group) == size:
                yield waiting.pop(key)
        yield from waiting.values()
