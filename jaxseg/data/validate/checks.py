"""What is checked of data: which splits, what labels hold together, and the check before step 0, which stops at the first error.

report.py collects all errors, by the same rules.
"""

import dataclasses
import logging
import math
import os
from collections import Counter
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from jaxseg import parallel
from jaxseg.constants import IGNORE
from jaxseg.data import label_counts as histogram
from jaxseg.data import pipeline
from jaxseg.data.class_order import config_spec
from jaxseg.data.decode import Header, check_channels, check_sizes
from jaxseg.data.sources import Source, open_source, split_names
from jaxseg.data.sources.pairs import left_out, unused_labels
from jaxseg.data.spec import DatasetSpec
from jaxseg.data.values import check_range
from jaxseg.errors import DataError

log = logging.getLogger(__name__)

CHECKED_WHOLE = (
    5000  # pairs up to which every one of a `folder` is checked: people make mistakes anywhere
)
DECODED_PIXELS = (
    2**31
)  # of a `folder`'s images that the check before step 0 decodes, some 20 seconds of one core; of others an eighth


@dataclasses.dataclass
class Split:
    """A split of the data set that `part` names (name, root, source), and what was found there.

    repeat: how often an epoch of training shows it, 0 for evaluation; alone: it is all that training sees. counts: pixels of every
    class and of 255, int64 [N, K + 1], zeros where a label is unreadable.
    """

    title: str
    part: ConfigDict
    spec: DatasetSpec
    split: str
    repeat: int
    alone: bool = False
    source: Source | None = None
    counts: np.ndarray | None = None
    headers: Sequence[Header | None] = ()

    def open(self, data: ConfigDict) -> None:
        """Find the files or records, to be read as config.dataset says, and log which files are left out. Raises DataError."""
        for line in filter(
            None, (left_out(self.spec, self.part.root, part) for part in self._parts())
        ):
            log.info("%s", line)
        self.source = open_source(
            self.spec,
            self.part.root,
            self.split,
            source=self.part.source,
            **pipeline.image_options(data),
        )

    def _parts(self) -> list[str]:
        """The data set's own names for what the split is made of, [] where it is not made of files."""
        if self.part.source != "files" or self.spec.layout is None or not self.part.root:
            return []
        return list(
            dict.fromkeys(
                part for name in split_names(self.split) for part in self.spec.layout.parts(name)
            )
        )

    def unused_labels(self) -> list[str]:
        """Label files of a `folder` that no image has: harmless for training, but often a sign of misnamed images."""
        return sorted(
            str(file)
            for part in self._parts()
            for file in unused_labels(self.spec, self.part.root, part)
        )

    def tally(self, *fields: str) -> list[tuple[tuple, int]]:
        """((values of these fields of Header), how many images have them), most frequent first."""
        return Counter(
            tuple(getattr(header, field) for field in fields) for header in self.headers if header
        ).most_common()

    def totals(self) -> np.ndarray:
        """Pixels of every class and of 255: int64 [K + 1]."""
        return (
            np.zeros(self.spec.num_classes + 1, np.int64)
            if self.counts is None
            else self.counts.sum(0)
        )

    def all_read(self) -> bool:
        """Whether `counts` tells of every label, so that rules about the whole split can be applied."""
        return (
            self.counts is not None
            and len(self.counts) == len(self.source)
            and bool(self.counts.any(1).all())
        )


def find_splits(config: ConfigDict) -> list[Split]:
    """What an epoch of training reads, then what evaluation does; not opened. Raises DataError for other classes."""
    data = config.dataset
    splits = [Split("train", data, config_spec(data), data.train_split, 1, alone=not data.concat)]
    for key, part in pipeline.joined_sets(data).items():
        spec = pipeline.joined_spec(key, part, data, splits[0].spec.classes)
        splits.append(Split(f"train, concat.{key}", part, spec, part.train_split, part.repeat))
    part, spec = pipeline.evaluated(config)
    return [*splits, Split("val", part, spec, data.val_split, 0)]


# --- Before step 0 ----------------------------------------------------------------------------------------------------


def check(config: ConfigDict) -> None:
    """Raise DataError if the training or the evaluation split of `config` is incomplete, damaged or wrongly labelled.

    Files are always looked for. Pairs are read in parallel: every one of a `folder` of at most `CHECKED_WHOLE` a split, else
    config.dataset.check_samples of each split, evenly spread; check_samples=0 reads none. Beyond `DECODED_PIXELS` only the headers
    of images are read. What that misses the loader reports in the same words. The label map is logged as a table.
    """
    data, splits = config.dataset, find_splits(config)
    log.info("%s", format_label_map(splits[0].spec))
    for split in splits:
        split.open(data)
        if unused := split.unused_labels():
            log.warning(
                "%s and %d other labels have no image of the same name and are not used",
                unused[0],
                len(unused) - 1,
            )
        if data.check_samples and split.spec.name != "shapes":
            _check_pairs(split, data)
            if problem := judge(split):
                raise DataError(problem[1])


def _check_pairs(split: Split, data: ConfigDict) -> None:
    """Read pairs of a split: its `counts`. Raises the first pair's DataError."""
    source, name, count = split.source, split.split, len(split.source)
    whole = split.spec.name == "folder" and count <= CHECKED_WHOLE
    chosen = parallel.evenly_spaced(count, count if whole else data.check_samples)
    room = DECODED_PIXELS // (1 if whole else 8) // math.prod(source.header(chosen[0]).size)
    decoded = {chosen[place] for place in parallel.evenly_spaced(len(chosen), max(room, 1))}

    def count_pixels(index: int) -> np.ndarray:
        if index in decoded:
            image, label = pipeline.read(source, index, data.dtype)
            check_range(image, source.files[index], data.nodata)
        else:
            file, label, header = (
                source.files[index],
                source.read_label(index),
                source.header(index),
            )
            check_channels(header.channels, data.channels, file, header.alpha)
            pipeline.check_dtype(header.dtype, data.dtype, file)
            check_sizes(header.size, label.shape, file, source.label_files[index])
        return histogram.count_pixels(label, split.spec.num_classes)

    split.counts = np.stack(
        list(parallel.ordered_map(count_pixels, chosen, f"checking {split.title}", progress=True))
    )
    if len(chosen) < count:
        log.info(
            "checked %d of %d pairs of split %s; config.dataset.check_samples=%d checks all",
            len(chosen),
            count,
            name,
            count,
        )
    if len(decoded) < len(chosen):
        log.info(
            "decoded %d images of split %s, of others read the header; scripts/check_data.py decodes all",
            len(decoded),
            name,
        )


# --- Rules ------------------------------------------------------------------------------------------------------------


def judge(split: Split) -> tuple[str, str] | None:
    """(kind of problem, message) if every label of a split was read and they are all valid, yet teach nothing."""
    if not split.all_read() or not (
        found := teach_nothing(split.spec, split.totals(), split.alone)
    ):
        return None
    (kind, held, fix), first = found, split.source.label_files[0]
    folder = os.path.dirname(first) or split.spec.name
    return kind, f"{folder}: the labels of split '{split.split}' hold {held}, e.g. {first}; {fix}."


def teach_nothing(
    spec: DatasetSpec, counts: np.ndarray, training: bool = False
) -> tuple[str, str, str] | None:
    """(kind, what labels of `counts` pixels [K + 1] hold, what to do) if nothing, or something else, would be learned from them.

    training: all that is learned comes from them, so they need two classes.
    """
    present, ignored = np.flatnonzero(counts[:-1]).tolist(), counts[-1] > 0
    if not present:
        return (
            ("all ignored", f"nothing but {IGNORE} (ignore)", "write class numbers there")
            if ignored
            else None
        )
    undeclared = (
        spec.name == "folder" and not spec.colors and IGNORE not in spec.label_map.values()
    )  # nobody said what 255 means
    if present == [0] and ignored and undeclared and (training or spec.num_classes == 2):
        first, second = spec.classes[:2]
        fix = (
            f"{IGNORE} means ignore, so only '{first}' would be learned: write 1 instead of {IGNORE} for '{second}', or say what they mean "
            f"in label_map.txt beside classes.txt: `0 {first}` and `{IGNORE} {second}`"
        )
        return "all masks", f"only 0 and {IGNORE}", fix
    if training and len(present) == 1:
        held = f"one class only, '{spec.classes[present[0]]}' ({present[0]})"
        return (
            "one class",
            held,
            "nothing could be learned from them: label the other classes too, or correct the values",
        )
    return None


def format_label_map(spec: DatasetSpec) -> str:
    """The label map as a table: what the labels hold, and the class that stands for."""
    raw: dict[int, list[tuple[int, int]]] = {}
    for first, last, index in (
        *((value, value, index) for value, index in spec.label_map.items()),
        *spec.label_ranges,
    ):
        raw.setdefault(index, []).append((first, last))
    if not any(first <= IGNORE <= last for ranges in raw.values() for first, last in ranges):
        raw.setdefault(IGNORE, []).append((IGNORE, IGNORE))
    cells = [f"{_ranges(raw[index])} -> {index} {name}" for index, name in enumerate(spec.classes)]
    if spec.colors:
        cells = [
            f"{cell} (colour {' '.join(map(str, color))})"
            for cell, color in zip(cells, spec.colors)
        ]
    if ignored := raw.get(IGNORE):
        cells.append(
            f"{_ranges(ignored)} -> ignored{''.join(f' (colour {a} {b} {c})' for a, b, c in spec.ignored_colors)}"
        )
    width = max(map(len, cells)) + 3
    columns = max(1, 110 // width)
    rows = (
        "".join(cell.ljust(width) for cell in cells[first : first + columns]).rstrip()
        for first in range(0, len(cells), columns)
    )
    return "\n  ".join((f"label map of '{spec.name}': value in the labels -> class", *rows))


def _ranges(ranges: list[tuple[int, int]]) -> str:
    """[(0, 0), (1, 1), (2, 4), (9, 9)] -> '0-4,9'; a range that begins below 0 is written -3..-1."""
    joined: list[list[int]] = []
    for first, last in sorted(ranges):
        if joined and joined[-1][1] == first - 1:
            joined[-1][1] = last
        else:
            joined.append([first, last])
    return ",".join(
        str(first) if first == last else f"{first}{'..' if first < 0 else '-'}{last}"
        for first, last in joined
    )
