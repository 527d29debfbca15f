"""Everything that is wrong with a data set.

All labels and images are read once, and all problems collected. The check before step 0 (checks.py)
stops at the first problem instead. formatting.py prints reports.
"""

import contextlib
import dataclasses
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxseg.config.schema import DatasetConfig, EvalConfig
from jaxseg.data import catalog, label_counts, pipeline, sources, statistics
from jaxseg.data.decode import Header, ImageOptions, check_channels, check_sizes, decode_label
from jaxseg.data.sources import pairs as pairing
from jaxseg.data.sources import records
from jaxseg.data.spec import DatasetSpec
from jaxseg.data.validate import checks
from jaxseg.data.validate.checks import CheckedSplit
from jaxseg.data.validate.problems import KINDS, MISSING_CLASS_RULES, Problem
from jaxseg.data.values import check_finite, check_range
from jaxseg.errors import DataError
from jaxseg.files import expand
from jaxseg.parallel import ordered_map


class WrittenStatistics(NamedTuple):
    """The statistics that were written.

    Attributes:
        mean: Mean per channel.
        std: Standard deviation per channel.
        file: Where they were written.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    file: str


@dataclasses.dataclass
class DataReport:
    """What is known about a data set after reading all of it.

    Attributes:
        splits: The training splits, and last the evaluation split.
        problems: All problems.
        weights: Suggested weight of each class in the loss.
        statistics: The statistics that were written, None if they were not to be written.
    """

    splits: list[CheckedSplit]
    problems: list[Problem]
    weights: tuple[float, ...] = ()
    statistics: WrittenStatistics | None = None

    @property
    def ok(self) -> bool:
        """Whether training can start."""
        return not any(KINDS[problem.kind].is_error for problem in self.problems)


def folder_config(root: str, name: str = "folder", channels: int = 0) -> DatasetConfig:
    """Return the config of a data set that has none yet.

    Args:
        root: Its folder.
        name: Its name, one of `catalog.list_datasets()`.
        channels: Channels of the images; 0 to choose by the first one (`sources.guess_channels`).
    """
    root = str(expand(root)) if root else ""
    if not channels:
        try:
            spec = catalog.get_spec(name, root)
            channels = sources.guess_channels(sources.open_source(spec, root, "train"))
        except DataError:
            channels = 3  # check_data reports the error
    return DatasetConfig(name=name, root=root, channels=channels)


def check_data(
    dataset: DatasetConfig,
    evaluation: EvalConfig,
    spec: DatasetSpec,
    *,
    write_statistics: bool = False,
    progress: bool = False,
) -> DataReport:
    """Read everything that training and evaluation would read, and collect what is wrong with it.

    Every label and every image is decoded once, in parallel.

    Args:
        dataset: The data to train on.
        evaluation: The data to evaluate on.
        spec: The spec of `dataset` (`catalog.load_spec`).
        write_statistics: Also write `statistics.json`; otherwise it is read, if training would.
        progress: Show progress bars on a terminal.

    Raises:
        DataError: The classes of a data set cannot be read, or differ.
    """
    report = DataReport(checks.find_splits(dataset, evaluation, spec), [])
    *training, val = report.splits
    for split in report.splits:
        report.problems += _open(split, dataset)
        report.problems += _scan(split, dataset, progress)
        report.problems += _check_labels(split)
    report.problems += _find_outliers(report.splits, {problem.file for problem in report.problems})
    totals = np.sum([split.totals() * split.repeat for split in training], axis=0)
    if all(split.all_read() for split in report.splits):  # otherwise there are worse problems
        report.problems += _find_missing_classes(spec.classes, totals, val.totals())
    report.problems += _find_leaks(training, val, progress)
    report.weights = label_counts.class_weights(totals[:-1])
    try:
        if write_statistics and training[0].source is not None:
            report.statistics = _write_statistics(dataset, training[0].source, progress)
        else:
            _check_statistics(dataset)
    except DataError as error:
        report.problems.append(Problem("statistics", "train", str(dataset.root), str(error)))
    return report


# --- Statistics -----------------------------------------------------------------------------------


def _statistics_folder(dataset: DatasetConfig) -> str | Path:
    """Return the folder where training looks for statistics.json."""
    if dataset.source == "tfds":
        return records.find_prepared(dataset.name, dataset.root)
    return dataset.root


def _write_statistics(
    dataset: DatasetConfig, source: sources.Source, progress: bool
) -> WrittenStatistics:
    """Measure the images of a source and write their statistics."""
    folder = _statistics_folder(dataset)
    mean, std = statistics.image_statistics(source, progress=progress)
    return WrittenStatistics(mean, std, str(statistics.write_statistics(folder, mean, std)))


def _check_statistics(dataset: DatasetConfig) -> None:
    """Raise DataError if training would read a statistics.json that is wrong."""
    folder = _statistics_folder(dataset)
    if not (dataset.image_mean and dataset.image_std):
        statistics.read_statistics(folder, dataset.channels)


# --- Files ----------------------------------------------------------------------------------------


def _open(split: CheckedSplit, dataset: DatasetConfig) -> list[Problem]:
    """Open a split; if labels are missing, with the complete pairs."""
    problems: list[Problem] = []
    try:
        split.open(dataset)
    except DataError as error:
        pairs: list[pairing.Pair] = []
        with contextlib.suppress(DataError):  # the name of the split cannot be parsed
            pairs = _find_complete_pairs(split, problems)
        split.source = None
        if pairs:
            options = ImageOptions(**pipeline.image_options(dataset))
            split.source = sources.FolderSource(split.spec, pairs, options)
        if not problems:
            problems.append(Problem("split", split.title, str(split.ref.root), str(error)))
    if split.source is not None:
        problems += [
            Problem(
                "unused label",
                split.title,
                file,
                f"{file}: not used; add its image, or give both one name.",
            )
            for file in split.unused_labels()
        ]
    return problems


def _find_complete_pairs(split: CheckedSplit, problems: list[Problem]) -> list[pairing.Pair]:
    """Return the complete pairs of a split; add the problems of other images to `problems`."""
    layout = split.spec.layout
    if split.ref.source != "files" or layout is None or not expand(split.ref.root).is_dir():
        return []
    wrong: list[tuple[str, Path, str]] = []
    pairs, root = [], expand(split.ref.root)
    names = sources.split_names(split.split)
    for part in (part for name in names for part in layout.parts(name)):
        try:
            images = pairing.find_images(split.spec, root, part, wrong)
        except DataError as error:
            problems.append(Problem("split", split.title, str(root), str(error)))
            continue
        labels = pairing.Labels(root, layout, part, images)
        for stem, image in images.items():
            with _collect(problems, "missing label", split, str(image)):
                pairs.append(pairing.Pair(stem, image, *labels.find(stem)))
    problems += [Problem(kind, split.title, str(file), text) for kind, file, text in wrong]
    return pairs


@contextlib.contextmanager
def _collect(problems: list[Problem], kind: str, split: CheckedSplit, file: str) -> Iterator[None]:
    """Add the DataError of a block to `problems`."""
    try:
        yield
    except DataError as error:
        problems.append(Problem(kind, split.title, file, str(error)))


def _scan(split: CheckedSplit, dataset: DatasetConfig, progress: bool) -> list[Problem]:
    """Read the samples of a split; set its headers and counts."""
    if split.source is None:
        return []
    examine = partial(_examine, split, split.source, dataset)
    found = ordered_map(examine, range(len(split.source)), f"reading {split.title}", progress)
    split.headers, counts, problems = zip(*found)
    split.counts = np.stack(counts)
    if split.all_read():
        label_counts.save_counts(split.source, split.counts)
    return list(dict.fromkeys(itertools.chain(*problems)))  # those of a repeated image once


def _examine(
    split: CheckedSplit, source: sources.Source, dataset: DatasetConfig, index: int
) -> tuple[Header | None, np.ndarray, list[Problem]]:
    """Read one sample.

    Returns:
        The header of the image; pixels of every class and 255 in the label, int64 [K + 1], zeros if
        it cannot be read; and the problems.
    """
    problems: list[Problem] = []
    header = image = label = None
    file, label_file = source.files[index], source.label_files[index]
    with _collect(problems, "damaged image", split, file):
        header = source.header(index)
    if header is not None:
        with _collect(problems, "channels", split, file):
            check_channels(header.channels, dataset.channels, file, header.alpha)
    if not problems:
        with _collect(problems, "damaged image", split, file):
            image = source.read_image(index)
    if image is not None:
        with _collect(problems, "not finite", split, file):
            check_finite(image, file)
        with _collect(problems, "range", split, file):
            check_range(image, file, dataset.nodata)
    try:
        label = source.read_label(index)
    except DataError as error:
        kind = _label_kind(label_file, split.spec)
        problems.append(Problem(kind, split.title, label_file, str(error)))
        return header, np.zeros(split.spec.num_classes + 1, np.int64), problems
    if header is not None:
        with _collect(problems, "size", split, file):
            check_sizes(header.size, label.shape, file, label_file)
    return header, label_counts.count_pixels(label, split.spec.num_classes), problems


def _label_kind(file: str, spec: DatasetSpec) -> str:
    """Return the kind of problem of a label that cannot be read."""
    try:
        label = decode_label(Path(file).read_bytes(), file, spec)
    except (DataError, OSError):  # OSError: records are not files
        return "damaged label"
    return "color" if label.ndim == 3 else "value"


def _find_outliers(splits: Sequence[CheckedSplit], known: set[str]) -> list[Problem]:
    """Find images whose dtype or number of channels differs from most training images'.

    Args:
        splits: All splits.
        known: Files that have been reported already.
    """
    problems = []
    for kind, field, unit in (("dtype", "dtype", ""), ("mixed channels", "channels", " channels")):
        counted = splits[0].count_by(field)
        if not counted:
            continue
        ((usual,), _) = counted[0]
        for split in splits:
            files = split.source.files if split.source is not None else ()
            values = {
                (file, getattr(header, field))
                for file, header in zip(files, split.headers)
                if header and file not in known
            }
            problems += [
                Problem(
                    kind,
                    split.title,
                    file,
                    f"{file}: {value}{unit}, where most images have {usual}{unit}; save it like "
                    "the others.",
                )
                for file, value in sorted(values)
                if value != usual
            ]
    return problems


# --- All labels together --------------------------------------------------------------------------


def _check_labels(split: CheckedSplit) -> list[Problem]:
    """Find labels that are valid, yet teach nothing: all of a split, or some of them."""
    if split.source is None or split.counts is None:
        return []
    if problem := checks.check_split_labels(split):
        file = split.source.label_files[0]
        return [Problem(problem.kind, split.title, file, str(problem.error))]
    problems = []
    for file, counts in sorted(dict(zip(split.source.label_files, split.counts)).items()):
        if found := checks.find_degenerate_labels(split.spec, counts):
            kind = found.kind.removeprefix("all ")
            text = f"{file}: holds {found.content}; {found.hint}."
            problems.append(Problem(kind, split.title, file, text))
    return problems


def _find_missing_classes(
    classes: Sequence[str], train: np.ndarray, val: np.ndarray
) -> list[Problem]:
    """Find classes that a split lacks.

    Args:
        classes: Their names.
        train: Pixels of every class and of 255 in the training labels, [K + 1].
        val: The same of the evaluation labels.
    """
    problems = []
    for index, name in enumerate(classes):
        if rule := MISSING_CLASS_RULES.get((bool(train[index]), bool(val[index]))):
            text = f"class {index} '{name}': {rule.text}"
            problems.append(Problem(rule.kind, rule.split, name, text))
    return problems


def _find_leaks(
    training: Sequence[CheckedSplit], val: CheckedSplit, progress: bool
) -> list[Problem]:
    """Find images of val that training reads too, as the same file or with the same bytes."""
    train_sizes, val_sizes = _file_sizes(training), _file_sizes([val])
    common = set(train_sizes.values()) & set(val_sizes.values())  # only these can be equal
    train_files = [file for file, size in train_sizes.items() if size in common]
    val_files = [file for file, size in val_sizes.items() if size in common]
    title = "comparing train and val"
    owners = dict(zip(ordered_map(_digest, train_files, title, progress), train_files))
    problems = []
    for digest, file in zip(ordered_map(_digest, val_files, title, progress), val_files):
        owner = owners.get(digest)
        if owner is None:
            continue
        same = "training reads this file, too" if file == owner else f"the same image as {owner}"
        text = (
            f"{file}: {same}; take it out of one of them: scores on images that training sees are "
            "too high."
        )
        problems.append(Problem("leak", "val", file, text))
    return problems


def _file_sizes(splits: Sequence[CheckedSplit]) -> dict[str, int]:
    """Return {image file: size in bytes} of opened splits, sorted; records have no files."""
    files = {file for split in splits if split.source is not None for file in split.source.files}
    return {file: Path(file).stat().st_size for file in sorted(files) if Path(file).is_file()}


def _digest(file: str) -> bytes:
    return hashlib.sha256(Path(file).read_bytes()).digest()
