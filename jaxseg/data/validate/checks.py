"""Validation of a data set before training, which raises on the first problem.

report.py collects all problems by the same rules.
"""

import dataclasses
import logging
import math
import os
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxseg.config.schema import DatasetConfig, EvalConfig, Experiment
from jaxseg.constants import IGNORE
from jaxseg.data import label_counts, pipeline
from jaxseg.data.decode import Header, check_channels, check_sizes
from jaxseg.data.sources import Source, open_source, split_names
from jaxseg.data.sources.pairs import left_out, unused_labels
from jaxseg.data.spec import DatasetRef, DatasetSpec, LabelRange
from jaxseg.data.values import check_range
from jaxseg.errors import DataError
from jaxseg.parallel import evenly_spaced, ordered_map

log = logging.getLogger(__name__)

# Number of pairs up to which every one of a `folder` split is checked: people make mistakes
# anywhere.
CHECKED_WHOLE = 5000
# Pixels of a `folder` split's images that the check before step 0 decodes, some 20 seconds of one
# core; an eighth of that for other data sets.
DECODED_PIXELS = 2**31
TABLE_WIDTH = 110


@dataclasses.dataclass
class CheckedSplit:
    """A split of a data set, and the facts that were found by reading it.

    Attributes:
        title: Its role: "train", "train, concat.LABEL" or "val".
        ref: The data set.
        spec: The data set, its classes in the order of the run.
        split: Name of the split in the data set.
        repeat: How often an epoch of training shows it; 0 for evaluation.
        alone: Whether training reads nothing else.
        source: Its samples, None until it is opened or if it cannot be.
        counts: Pixels of every class and of 255 in every label, int64 [N, K + 1], zeros where a
            label cannot be read; None before the labels are read.
        headers: Header of every image, None where it cannot be read.
    """

    title: str
    ref: DatasetRef
    spec: DatasetSpec
    split: str
    repeat: int
    alone: bool = False
    source: Source | None = None
    counts: np.ndarray | None = None
    headers: Sequence[Header | None] = ()

    def open(self, dataset: DatasetConfig) -> None:
        """Find the files or records, and log which files are left out.

        Args:
            dataset: How the images are read.

        Raises:
            DataError: The split does not exist, or a label is missing.
        """
        for part in self._parts():
            if line := left_out(self.spec, self.ref.root, part):
                log.info("%s", line)
        options = pipeline.image_options(dataset)
        self.source = open_source(
            self.spec, self.ref.root, self.split, source=self.ref.source, **options
        )

    def _parts(self) -> list[str]:
        """Return the data set's own names for the split's parts, [] if it is not made of files."""
        if self.ref.source != "files" or self.spec.layout is None or not self.ref.root:
            return []
        names = split_names(self.split)
        parts = [part for name in names for part in self.spec.layout.parts(name)]
        return list(dict.fromkeys(parts))

    def unused_labels(self) -> list[str]:
        """Return the label files of a `folder` that have no image.

        They do no harm, but are often a sign of misnamed images.
        """
        files = [
            file for part in self._parts() for file in unused_labels(self.spec, self.ref.root, part)
        ]
        return sorted(map(str, files))

    def count_by(self, *fields: str) -> list[tuple[tuple[Any, ...], int]]:
        """Count the images by fields of their Header.

        Returns:
            (values of the fields, number of images), most frequent first.
        """
        values = (
            tuple(getattr(header, field) for field in fields) for header in self.headers if header
        )
        return Counter(values).most_common()

    def totals(self) -> np.ndarray:
        """Return the pixels of every class and of 255 in all labels, int64 [K + 1]."""
        if self.counts is None:
            return np.zeros(self.spec.num_classes + 1, np.int64)
        return self.counts.sum(0)

    def all_read(self) -> bool:
        """Return whether every label was read, so that rules about the whole split apply."""
        return (
            self.counts is not None
            and self.source is not None
            and len(self.counts) == len(self.source)
            and bool(self.counts.any(1).all())
        )


def find_splits(
    dataset: DatasetConfig, evaluation: EvalConfig, spec: DatasetSpec
) -> list[CheckedSplit]:
    """List the splits that training reads, and last the one of evaluation; none is opened.

    Args:
        dataset: The data to train on.
        evaluation: The data to evaluate on.
        spec: The spec of `dataset` (`catalog.load_spec`).

    Raises:
        DataError: A data set has other classes.
    """
    ref = DatasetRef(dataset.name, dataset.root, dataset.source)
    alone = not dataset.concat
    splits = [CheckedSplit("train", ref, spec, dataset.train_split, repeat=1, alone=alone)]
    for label, entry in dataset.concat.items():
        ref = DatasetRef(entry.name, entry.root, entry.source)
        own_spec = pipeline.concat_spec(label, entry, dataset, spec)
        name = entry.train_split or dataset.train_split
        title = f"train, concat.{label}"
        splits.append(CheckedSplit(title, ref, own_spec, name, entry.repeat))
    ref, own_spec = pipeline.eval_dataset(dataset, evaluation, spec)
    return [*splits, CheckedSplit("val", ref, own_spec, dataset.val_split, repeat=0)]


# --- Before step 0 --------------------------------------------------------------------------------


def check(experiment: Experiment, spec: DatasetSpec) -> None:
    """Check the data of an experiment before training.

    The files are always looked for. Pairs are read in parallel: every one of a `folder` split of at
    most CHECKED_WHOLE, otherwise `dataset.check_samples` of each split, evenly spread, and none if
    that is 0. Beyond DECODED_PIXELS only the headers of images are read. What this misses, the
    loader reports with the same message. The label map is logged as a table.

    Args:
        experiment: Names the data sets and says how images are read.
        spec: The spec of `experiment.dataset` (`catalog.load_spec`).

    Raises:
        DataError: The training or the evaluation split is incomplete, damaged or wrongly labelled.
    """
    dataset = experiment.dataset
    splits = find_splits(dataset, experiment.eval, spec)
    log.info("%s", format_label_map(spec))
    for split in splits:
        split.open(dataset)
        if unused := split.unused_labels():
            log.warning(
                "%s and %d other labels have no image of the same name and are not used",
                unused[0],
                len(unused) - 1,
            )
        if dataset.check_samples and split.spec.name != "shapes":
            _check_pairs(split, dataset)
            if problem := check_split_labels(split):
                raise problem.error


def _check_pairs(split: CheckedSplit, dataset: DatasetConfig) -> None:
    """Read pairs of an opened split and set its `counts`; raise the first pair's DataError."""
    source = split.source
    assert source is not None
    count = len(source)
    whole = split.spec.name == "folder" and count <= CHECKED_WHOLE
    chosen = evenly_spaced(count, count if whole else dataset.check_samples)
    pixels = DECODED_PIXELS if whole else DECODED_PIXELS // 8
    decodable = max(pixels // math.prod(source.header(chosen[0]).size), 1)
    decoded = {chosen[place] for place in evenly_spaced(len(chosen), decodable)}

    def count_pixels(index: int) -> np.ndarray:
        if index in decoded:
            image, label = pipeline.read_pair(source, index, dataset.dtype)
            check_range(image, source.files[index], dataset.nodata)
        else:
            label = source.read_label(index)
            _check_header(source, index, label, dataset)
        return label_counts.count_pixels(label, split.spec.num_classes)

    counts = ordered_map(count_pixels, chosen, f"checking {split.title}", progress=True)
    split.counts = np.stack(list(counts))
    if len(chosen) < count:
        log.info(
            "checked %d of %d pairs of split %s; config.dataset.check_samples=%d checks all",
            len(chosen),
            count,
            split.split,
            count,
        )
    if len(decoded) < len(chosen):
        log.info(
            "decoded %d images of split %s, and read only the header of others; "
            "scripts/check_data.py decodes all",
            len(decoded),
            split.split,
        )


def _check_header(source: Source, index: int, label: np.ndarray, dataset: DatasetConfig) -> None:
    """Check an image by its header; raise DataError."""
    file, header = source.files[index], source.header(index)
    check_channels(header.channels, dataset.channels, file, header.alpha)
    pipeline.check_dtype(header.dtype, dataset.dtype, file)
    check_sizes(header.size, label.shape, file, source.label_files[index])


# --- Rules ----------------------------------------------------------------------------------------


class SplitProblem(NamedTuple):
    """What is wrong with all labels of a split together.

    Attributes:
        kind: Key of `problems.KINDS`.
        error: The error, which names the folder of the labels.
    """

    kind: str
    error: DataError


class DegenerateLabels(NamedTuple):
    """Valid labels from which nothing useful would be learned.

    Attributes:
        kind: Key of `problems.KINDS`.
        content: What the labels hold.
        hint: What to do about it.
    """

    kind: str
    content: str
    hint: str


def check_split_labels(split: CheckedSplit) -> SplitProblem | None:
    """Return the problem of a split whose labels are all valid, yet teach nothing.

    None if there is no such problem, or not every label was read.
    """
    if split.source is None or not split.all_read():
        return None
    found = find_degenerate_labels(split.spec, split.totals(), split.alone)
    if found is None:
        return None
    first = split.source.label_files[0]
    problem = f"the labels of split '{split.split}' hold {found.content}, e.g. {first}"
    folder = os.path.dirname(first) or split.spec.name
    return SplitProblem(found.kind, DataError(problem, file=folder, hint=found.hint))


def find_degenerate_labels(
    spec: DatasetSpec, counts: np.ndarray, training: bool = False
) -> DegenerateLabels | None:
    """Return why nothing useful would be learned from labels, None if something would.

    Args:
        spec: Their data set.
        counts: Their pixels of every class and of 255, [K + 1].
        training: Whether all that is learned comes from them, so that they need two classes.
    """
    present, ignored = np.flatnonzero(counts[:-1]).tolist(), counts[-1] > 0
    if not present:
        if not ignored:
            return None
        content = f"nothing but {IGNORE} (ignore)"
        return DegenerateLabels("all ignored", content, "write class numbers there")
    # Masks of 0 and 255 where nobody has declared what 255 means.
    undeclared = spec.name == "folder" and not spec.colors and IGNORE not in spec.label_map.values()
    if present == [0] and ignored and undeclared and (training or spec.num_classes == 2):
        first, second = spec.classes[:2]
        hint = (
            f"{IGNORE} means ignore, so only '{first}' would be learned: write 1 instead of "
            f"{IGNORE} for '{second}', or say what they mean in label_map.txt beside classes.txt: "
            f"`0 {first}` and `{IGNORE} {second}`"
        )
        return DegenerateLabels("all masks", f"only 0 and {IGNORE}", hint)
    if training and len(present) == 1:
        content = f"one class only, '{spec.classes[present[0]]}' ({present[0]})"
        hint = (
            "nothing could be learned from them: label the other classes too, or correct the values"
        )
        return DegenerateLabels("one class", content, hint)
    return None


# --- The label map --------------------------------------------------------------------------------


def format_label_map(spec: DatasetSpec) -> str:
    """Return the label map as a table of label values and their classes."""
    raw: dict[int, list[tuple[int, int]]] = {}
    single: list[LabelRange] = [(value, value, index) for value, index in spec.label_map.items()]
    for first, last, index in (*single, *spec.label_ranges):
        raw.setdefault(index, []).append((first, last))
    if not any(first <= IGNORE <= last for ranges in raw.values() for first, last in ranges):
        raw.setdefault(IGNORE, []).append((IGNORE, IGNORE))
    cells = [f"{_join(raw[index])} -> {index} {name}" for index, name in enumerate(spec.classes)]
    if spec.colors:
        cells = [f"{cell}{_color(color)}" for cell, color in zip(cells, spec.colors)]
    if ignored := raw.get(IGNORE):
        colors = "".join(_color(color) for color in spec.ignored_colors)
        cells.append(f"{_join(ignored)} -> ignored{colors}")
    width = max(map(len, cells)) + 3
    columns = max(1, TABLE_WIDTH // width)
    rows = [
        "".join(cell.ljust(width) for cell in cells[first : first + columns]).rstrip()
        for first in range(0, len(cells), columns)
    ]
    return "\n  ".join([f"label map of '{spec.name}': value in the labels -> class", *rows])


def _color(color: tuple[int, int, int]) -> str:
    return f" (colour {' '.join(map(str, color))})"


def _join(ranges: Sequence[tuple[int, int]]) -> str:
    """Join ranges: (0, 0), (1, 1), (2, 4), (9, 9) as '0-4,9'; a negative one as '-3..-1'."""
    joined: list[list[int]] = []
    for first, last in sorted(ranges):
        if joined and joined[-1][1] == first - 1:
            joined[-1][1] = last
        else:
            joined.append([first, last])
    return ",".join(_format_range(first, last) for first, last in joined)


def _format_range(first: int, last: int) -> str:
    if first == last:
        return str(first)
    return f"{first}{'..' if first < 0 else '-'}{last}"
