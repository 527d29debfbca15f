"""The data check before step 0: says, with file and value, what would train without an error and score nothing."""

import logging
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np

from jaxseg.data import pipeline
from jaxseg.data.datasets import IGNORE, DataError, DatasetSpec, get_spec
from jaxseg.data.sources import Files, check_sizes, inspect_image, open_source, unused_labels

log = logging.getLogger(__name__)

DECODED_PIXELS = 2**20  # images up to this size are decoded whole by the check; of larger ones the header is read
CHECKED_WHOLE = 5000  # pairs up to which every one of a `folder` is checked: people make mistakes anywhere


def check(config: Any) -> None:
    """Raise DataError if the training or the evaluation split of `config` is incomplete, damaged or wrongly labelled.

    Files are always looked for. Sizes and label values are checked, in parallel: of every pair of a `folder` of at most
    `CHECKED_WHOLE` a split, else of config.dataset.check_samples pairs of each split, evenly spread; check_samples=0
    checks none. What that misses the loader reports in the same words.
    """
    data = config.dataset
    pipeline.check_channels(data)
    splits = [
        (get_spec(data.name, data.root), data.root, data.train_split),
        (*pipeline.evaluated(config), data.val_split),
    ]
    for spec, root, split in splits:
        source = open_source(spec, root, split)
        if unused := unused_labels(spec, root, split):
            log.warning(
                "%s and %d other labels have no image of the same name and are not used", unused[0], len(unused) - 1
            )
        if isinstance(source, Files) and data.check_samples:
            whole = spec.name == "folder" and len(source) <= CHECKED_WHOLE
            indices = spread(len(source), len(source) if whole else data.check_samples)
            check_pairs(source, indices, split)
            if len(indices) < len(source):
                log.info(
                    "checked %d of %d pairs of split %s; config.dataset.check_samples=%d checks all",
                    len(indices), len(source), split, len(source),
                )  # fmt: skip


def spread(count: int, samples: int) -> list[int]:
    """At most `samples` of `count` indices, evenly spread."""
    return list(range(count)) if count <= samples else np.linspace(0, count - 1, samples).round().astype(int).tolist()


def check_pairs(source: Files, indices: Iterable[int], split: str) -> None:
    """Check these pairs of a source, then what their labels hold together. Raises the first pair's DataError."""
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
        futures = [pool.submit(partial(check_pair, source), index) for index in indices]
        try:
            present = {value for future in futures for value in future.result()}
        finally:
            for future in futures:
                future.cancel()
    _check_values(source.spec, present, source, split)


def check_pair(source: Files, index: int) -> set[int]:
    """Check one pair; the values (class ids and 255) of its label."""
    pair, label = source.pairs[index], source.read_label(index)
    size = inspect_image(pair.image, pair.image)
    if size[0] * size[1] <= DECODED_PIXELS:
        size = source.read_image(index).shape[:2]
    check_sizes(size, label.shape, pair.image, pair.label)
    return set(np.flatnonzero(np.bincount(label.ravel(), minlength=256)).tolist())


def _check_values(spec: DatasetSpec, present: set[int], source: Files, split: str) -> None:
    """Labels that are all valid, and yet teach nothing."""
    folder, first = source.pairs[0].label.parent, source.pairs[0].label
    if present == {IGNORE}:
        raise DataError(
            f"{folder}: the labels of split '{split}' hold nothing but {IGNORE} (ignore), e.g. {first}; "
            "write class numbers into them."
        )
    if present == {0, IGNORE}:
        raise DataError(
            f"{folder}: the labels of split '{split}' hold only 0 and {IGNORE}, e.g. {first}, and {IGNORE} means "
            f"ignore, so only '{spec.classes[0]}' would be learned; write 1 instead of {IGNORE} for the second class."
        )
