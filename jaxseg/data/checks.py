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
from jaxseg.data.decode import check_channels, check_sizes
from jaxseg.data.sources import Source, split_names, unused_labels
from jaxseg.data.statistics import check_finite

log = logging.getLogger(__name__)

DECODED_PIXELS = 2**20  # images up to this size are decoded whole by the check; of larger ones the header is read
CHECKED_WHOLE = 5000  # pairs up to which every one of a `folder` is checked: people make mistakes anywhere


def check(config: Any) -> None:
    """Raise DataError if the training or the evaluation split of `config` is incomplete, damaged or wrongly labelled.

    Files are always looked for. Sizes and label values are checked, in parallel: of every pair of a `folder` of at most
    `CHECKED_WHOLE` a split, else of config.dataset.check_samples pairs of each split, evenly spread; check_samples=0
    checks none. What that misses the loader reports in the same words. The label map is logged as a table.
    """
    data = config.dataset
    part, spec = pipeline.evaluated(config)
    log.info("%s", format_label_map(get_spec(data.name, data.root, data.source)))
    parts = [(data, data.train_split), *((other, other.get("train_split", data.train_split)) for other in data.concat.values())]
    pipeline.train_source(data)  # which tells of other classes
    for number, (named, split) in enumerate([*parts, (part, data.val_split)]):
        source = pipeline.open_named(named, data, split)
        names = split_names(split) if named.name == "folder" and source.spec.layout else ()
        if unused := [file for name in names for file in unused_labels(source.spec, named.root, name)]:
            log.warning("%s and %d other labels have no image of the same name and are not used", unused[0], len(unused) - 1)
        if data.check_samples and named.name != "shapes":
            whole = named.name == "folder" and len(source) <= CHECKED_WHOLE
            indices = spread(len(source), len(source) if whole else data.check_samples)
            check_pairs(source, indices, split, data.channels, data.dtype, training=number < len(parts))
            if len(indices) < len(source):
                log.info(
                    "checked %d of %d pairs of split %s; config.dataset.check_samples=%d checks all",
                    len(indices), len(source), split, len(source),
                )  # fmt: skip


def format_label_map(spec: DatasetSpec) -> str:
    """The label map as a table: what the labels hold, and the class that stands for."""
    raw: dict[int, list[int]] = {}
    for value, index in spec.label_map.items():
        raw.setdefault(index, []).append(value)
    raw.setdefault(IGNORE, []).append(IGNORE) if IGNORE not in spec.label_map else None
    cells = [f"{_ranges(raw[index])} -> {index} {name}" for index, name in enumerate(spec.classes)]
    if spec.colors:
        cells = [f"{cell} (colour {' '.join(map(str, color))})" for cell, color in zip(cells, spec.colors)]
    if ignored := raw.get(IGNORE):
        cells.append(f"{_ranges(ignored)} -> ignored{''.join(f' (colour {a} {b} {c})' for a, b, c in spec.ignored_colors)}")
    width = max(map(len, cells)) + 3
    columns = max(1, 110 // width)
    rows = ("".join(cell.ljust(width) for cell in cells[first : first + columns]).rstrip() for first in range(0, len(cells), columns))
    return "\n  ".join((f"label map of '{spec.name}': value in the labels -> class", *rows))


def _ranges(values: list[int]) -> str:
    """[0, 1, 2, 5] -> '0-2,5'."""
    values, runs = sorted(values), []
    for value in values:
        if runs and runs[-1][1] == value - 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def spread(count: int, samples: int) -> list[int]:
    """At most `samples` of `count` indices, evenly spread."""
    return list(range(count)) if count <= samples else np.linspace(0, count - 1, samples).round().astype(int).tolist()


def check_pairs(source: Source, indices: Iterable[int], split: str, channels: int, dtype: str, training: bool = True) -> None:
    """Check these pairs of a source, then what their labels hold together. Raises the first pair's DataError."""
    check_one = partial(check_pair, source, channels=channels, dtype=dtype)
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
        futures = [pool.submit(check_one, index) for index in indices]
        try:
            present = {value for future in futures for value in future.result()}
        finally:
            for future in futures:
                future.cancel()
    _check_values(source.spec, present, source, split, training)


def check_pair(source: Source, index: int, *, channels: int, dtype: str) -> set[int]:
    """Check one pair; the values (class ids and 255) of its label."""
    file, label, header = source.files[index], source.read_label(index), source.header(index)
    check_channels(header.channels, channels, file)
    pipeline.check_dtype(header.dtype, dtype, file)
    check_sizes(header.size, label.shape, file, source.label_files[index])
    if label.size <= DECODED_PIXELS:
        check_finite(source.read(index)[0], file)
    return set(np.flatnonzero(np.bincount(label.ravel(), minlength=256)).tolist())


def _check_values(spec: DatasetSpec, present: set[int], source: Source, split: str, training: bool) -> None:
    """Labels that are all valid, and yet teach nothing."""
    first = source.label_files[0]
    folder = os.path.dirname(first) or spec.name
    if present == {IGNORE}:
        raise DataError(
            f"{folder}: the labels of split '{split}' hold nothing but {IGNORE} (ignore), e.g. {first}; write class numbers into them."
        )
    if present == {0, IGNORE}:
        fix = f"in label_map.txt beside classes.txt: `0 {spec.classes[0]}` and `{IGNORE} {spec.classes[1]}`"
        raise DataError(
            f"{folder}: the labels of split '{split}' hold only 0 and {IGNORE}, e.g. {first}, and {IGNORE} means ignore, so only "
            f"'{spec.classes[0]}' would be learned; write 1 instead of {IGNORE} for the second class"
            + (f", or say what they mean {fix}." if spec.name == "folder" else ".")
        )
    if training and len(present - {IGNORE}) == 1:
        only = spec.classes[min(present)]
        raise DataError(
            f"{folder}: the labels of split '{split}' hold one class only, '{only}' ({min(present)}), e.g. {first}; nothing could be "
            "learned from them: label the other classes too, or correct the values."
        )
