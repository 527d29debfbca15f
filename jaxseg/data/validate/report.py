"""What a data set really holds: every label and image header read once, every kind of problem collected, class weights.

`check_data` collects, `as_text` and `as_json` tell. The check before step 0 (checks.py) stops at the first error instead.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from jaxseg import parallel
from jaxseg.config.defaults import DATASET, EVALUATION
from jaxseg.constants import IGNORE
from jaxseg.data import catalog, pipeline, sources, statistics, values
from jaxseg.data import label_counts as histogram
from jaxseg.data.decode import Header, ImageOptions, check_channels, check_sizes, decode_label
from jaxseg.data.sources import pairs as pairing
from jaxseg.data.sources import records
from jaxseg.data.spec import DatasetSpec
from jaxseg.data.validate import checks
from jaxseg.data.validate.checks import Split
from jaxseg.errors import DataError
from jaxseg.files import expand

SHOWN = 3  # files of every kind of problem that are printed

# kind -> (whether training goes wrong, in words)
KINDS: dict[str, tuple[bool, str]] = {
    "split": (True, "splits that cannot be opened"),
    "missing label": (True, "images without label"),
    "shared name": (True, "images of one name, which would share one label"),
    "damaged image": (True, "images that cannot be read"),
    "channels": (True, "images that do not have config.dataset.channels (--channels)"),
    "not finite": (True, "images that hold NaN or infinity"),
    "range": (True, "images that hold a value hugely outside of the rest"),
    "dtype": (True, "images whose values are of another type than the rest"),
    "statistics": (True, "statistics.json, which could not be made or is wrong"),
    "damaged label": (True, "labels that cannot be read"),
    "value": (True, "labels with values that are no class"),
    "color": (True, "labels with colours that are not in the table"),
    "size": (True, "labels of another size than their image"),
    "one class": (True, "splits whose labels hold one class only"),
    "all masks": (True, "splits whose labels hold only 0 and 255"),
    "all ignored": (True, "splits whose labels hold nothing but 255 (ignore)"),
    "not learned": (False, "classes that evaluation asks for and no training label holds"),
    "masks": (False, "labels that hold only 0 and 255"),
    "ignored": (False, "labels that hold nothing but 255 (ignore)"),
    "unused label": (False, "labels without an image of the same name"),
    "mixed channels": (False, "images that have other channels than the rest"),
    "absent": (False, "classes that no label of any split holds"),
    "absent from val": (False, "classes that no evaluation label holds"),
    "leak": (False, "images of the evaluation split that training sees too"),
}
# (whether train holds a class, whether val does) -> kind, split, what it means and what to do
LACKING = {
    (False, True): (
        "not learned",
        "train",
        "only evaluation labels hold it, so its IoU will be 0; move an image that holds it to train.",
    ),
    (True, False): (
        "absent from val",
        "val",
        "no evaluation label holds it, so its IoU is unknown; move an image that holds it there.",
    ),
    (False, False): (
        "absent",
        "train and val",
        "no label holds it; take it out of the classes, or check the label values.",
    ),
}


class Problem(NamedTuple):
    """One file (or class) that is wrong: kind is a key of KINDS, text says what and how to correct it."""

    kind: str
    split: str
    file: str
    text: str


@dataclasses.dataclass
class Report:
    """All splits, all problems, suggested weights of the classes, and what statistics.json was given (None: not asked)."""

    splits: list[Split]
    problems: list[Problem]
    weights: tuple[float, ...] = ()
    statistics: dict[str, Any] | None = None

    @property
    def ok(self) -> bool:
        """Whether training would go right."""
        return not any(KINDS[problem.kind][0] for problem in self.problems)


def folder_config(root: str, name: str = "folder", channels: int = 0) -> ConfigDict:
    """As much of a config as `check_data` reads, for a data set that has none yet. channels: 0 for those of the first image."""
    root = str(expand(root)) if root else ""
    if not channels:
        try:
            channels = sources.guess_channels(
                sources.open_source(catalog.get_spec(name, root), root, "train")
            )
        except DataError:
            channels = 3  # check_data will tell
    return ConfigDict(
        dict(dataset=DATASET | dict(name=name, root=root, channels=channels), eval=EVALUATION)
    )


def check_data(
    config: ConfigDict, *, write_statistics: bool = False, progress: bool = False
) -> Report:
    """Read all that training and evaluation on `config` would read, and collect what is wrong with it.

    Every label and every image is decoded once, in parallel. write_statistics: root/statistics.json is written, too, else read if
    training would. Raises DataError only where not even the classes are known.
    """
    data = config.dataset
    report = Report(checks.find_splits(config), [])
    *training, val = report.splits
    for split in report.splits:
        report.problems += (
            _open(split, data) + _scan(split, data, progress) + _look_at_labels(split)
        )
    report.problems += _odd_ones(report.splits, {problem.file for problem in report.problems})
    totals = sum(split.totals() * split.repeat for split in training)
    if all(split.all_read() for split in report.splits):  # else there are graver problems
        report.problems += _compare(training[0].spec.classes, totals, val.totals())
    report.problems += _leaks(training, val, progress)
    report.weights = histogram.class_weights(totals[:-1])
    try:
        report.statistics = _look_at_statistics(
            data, training[0].source if write_statistics else None, progress
        )
    except DataError as error:
        report.problems.append(Problem("statistics", "train", str(data.root), str(error)))
    return report


def _look_at_statistics(
    data: ConfigDict, measured: sources.Source | None, progress: bool
) -> dict[str, Any] | None:
    """Write statistics.json where training looks for it, from the images of `measured`, else check what is there. Raises DataError."""
    root = records.find_prepared(data.name, data.root) if data.source == "tfds" else data.root
    if measured is not None:
        mean, std = statistics.image_statistics(measured, progress=progress)
        return {"mean": mean, "std": std, "file": str(statistics.write_statistics(root, mean, std))}
    if not (data.image_mean and data.image_std):
        statistics.read_statistics(root, data.channels)
    return None


# --- Files ------------------------------------------------------------------------------------------------------------


def _open(split: Split, data: ConfigDict) -> list[Problem]:
    """Open a split; where labels are missing, the pairs that are whole."""
    problems, pairs = [], []
    try:
        split.open(data)
    except DataError as error:
        if split.part.source == "files" and split.spec.layout and expand(split.part.root).is_dir():
            with contextlib.suppress(DataError):  # the split's name cannot be parsed
                pairs = _find_pairs(split, problems)
        split.source = (
            sources.Files(split.spec, pairs, ImageOptions(**pipeline.image_options(data)))
            if pairs
            else None
        )
        if not problems:
            problems.append(Problem("split", split.title, str(split.part.root), str(error)))
    for file in split.unused_labels() if split.source else ():
        problems.append(
            Problem(
                "unused label",
                split.title,
                file,
                f"{file}: not used; add its image, or give both one name.",
            )
        )
    return problems


def _find_pairs(split: Split, problems: list[Problem]) -> list[pairing.Pair]:
    """The whole pairs of a split; images that cannot be read, without label, and those that share one, go to `problems`."""
    wrong: list[tuple[str, Path, str]] = []
    pairs, root, layout = [], expand(split.part.root), split.spec.layout
    for part in (part for name in sources.split_names(split.split) for part in layout.parts(name)):
        try:
            images = pairing.find_images(split.spec, root, part, wrong)
        except DataError as error:
            problems.append(Problem("split", split.title, str(root), str(error)))
            continue
        labels = pairing.Labels(root, layout, part, images)
        for stem, image in images.items():
            try:
                pairs.append(pairing.Pair(stem, image, *labels.find(stem)))
            except DataError as error:
                problems.append(Problem("missing label", split.title, str(image), str(error)))
    problems += [Problem(kind, split.title, str(file), text) for kind, file, text in wrong]
    return pairs


def _scan(split: Split, data: ConfigDict, progress: bool) -> list[Problem]:
    """Read the samples of a split."""
    if split.source is None:
        return []
    found = parallel.ordered_map(
        partial(_examine, split, data), range(len(split.source)), f"reading {split.title}", progress
    )
    split.headers, counts, problems = zip(*found)
    split.counts = np.stack(counts)
    if split.all_read():
        histogram.save_counts(split.source, split.counts)
    return list(dict.fromkeys(itertools.chain(*problems)))  # of a repeated image once


def _examine(
    split: Split, data: ConfigDict, index: int
) -> tuple[Header | None, np.ndarray, list[Problem]]:
    """Header of an image, pixels of every class and 255 in its label (zeros: unreadable), problems."""
    source, problems = split.source, []
    file, label_file = source.files[index], source.label_files[index]

    def attempt(kind: str, where: str, function: Callable, *args: Any) -> Any:
        try:
            return function(*args)
        except DataError as error:
            kind = _label_kind(label_file, split.spec) if kind == "damaged label" else kind
            problems.append(Problem(kind, split.title, where, str(error)))

    header = attempt("damaged image", file, source.header, index)
    if header is not None:
        attempt(
            "channels", file, check_channels, header.channels, data.channels, file, header.alpha
        )
    image = None if problems else attempt("damaged image", file, source.read_image, index)
    if image is not None:
        attempt("not finite", file, values.check_finite, image, file)
        attempt("range", file, values.check_range, image, file, data.nodata)
    label = attempt("damaged label", label_file, source.read_label, index)
    if label is None:
        return header, np.zeros(split.spec.num_classes + 1, np.int64), problems
    if header is not None:
        attempt("size", file, check_sizes, header.size, label.shape, file, label_file)
    return header, histogram.count_pixels(label, split.spec.num_classes), problems


def _label_kind(file: str, spec: DatasetSpec) -> str:
    """Which kind of problem a label has that cannot be read."""
    try:
        return "color" if decode_label(Path(file).read_bytes(), file, spec).ndim == 3 else "value"
    except (DataError, OSError):  # records are no files
        return "damaged label"


def _odd_ones(splits: Sequence[Split], known: set[str]) -> list[Problem]:
    """Images unlike most of training's; those in `known` are told already."""
    problems = []
    for kind, field, unit in (("dtype", "dtype", ""), ("mixed channels", "channels", " channels")):
        usual = [value for (value,), _ in splits[0].tally(field)[:1]]
        for split in splits:
            pairs = zip(split.source.files, split.headers) if usual and split.source else ()
            for file, value in sorted(
                {
                    (file, getattr(header, field))
                    for file, header in pairs
                    if header and file not in known
                }
            ):
                text = f"{file}: {value}{unit}, where most images have {usual[0]}{unit}; save it like the others."
                problems += [Problem(kind, split.title, file, text)] * (value != usual[0])
    return problems


# --- What the labels hold together ------------------------------------------------------------------------------------


def _look_at_labels(split: Split) -> list[Problem]:
    """Labels that are all valid, and yet teach nothing: all of a split, or some of them."""
    if found := checks.judge(split):
        return [Problem(found[0], split.title, split.source.label_files[0], found[1])]
    problems = []
    for file, counts in (
        sorted(dict(zip(split.source.label_files, split.counts)).items()) if split.source else ()
    ):
        if found := checks.teach_nothing(split.spec, counts):
            problems.append(
                Problem(
                    found[0].removeprefix("all "),
                    split.title,
                    file,
                    f"{file}: holds {found[1]}; {found[2]}.",
                )
            )
    return problems


def _compare(classes: Sequence[str], train: np.ndarray, val: np.ndarray) -> list[Problem]:
    """Classes that a split lacks; train and val: pixels of every class and 255."""
    held = (
        (index, name, LACKING.get((bool(train[index]), bool(val[index]))))
        for index, name in enumerate(classes)
    )
    return [
        Problem(*found[:2], name, f"class {index} '{name}': {found[2]}")
        for index, name, found in held
        if found
    ]


def _leaks(training: Sequence[Split], val: Split, progress: bool) -> list[Problem]:
    """Image files of val that train has, too, or whose bytes some image file of train has; only files of one size are read."""
    sides = [
        [split.source for split in side if split.source is not None] for side in (training, [val])
    ]
    files = [
        sorted({file for source in side for file in source.files if Path(file).is_file()})
        for side in sides
    ]  # records are none
    sizes = [[Path(file).stat().st_size for file in side] for side in files]
    common = set(sizes[0]) & set(sizes[1])
    files = [[file for file, size in zip(*pair) if size in common] for pair in zip(files, sizes)]

    def digest(file: str) -> bytes:
        return hashlib.sha256(Path(file).read_bytes()).digest()

    digests = [
        list(parallel.ordered_map(digest, side, "comparing train and val", progress))
        for side in files
    ]
    owners = dict(zip(digests[0], files[0]))
    problems = []
    for file, owner in (
        (file, owners[key]) for file, key in zip(files[1], digests[1]) if key in owners
    ):
        same = "training reads this file, too" if file == owner else f"the same image as {owner}"
        text = f"{file}: {same}; take it out of one of them: scores on images that training sees are too high."
        problems.append(Problem("leak", "val", file, text))
    return problems


# --- Telling ----------------------------------------------------------------------------------------------------------


def as_text(report: Report, losses: Sequence[str] = ("decode",)) -> str:
    """The whole report; losses: keys of config.losses that the suggested weights are for."""
    lines = [
        line
        for split in report.splits
        if split.counts is not None
        for line in [*_table(split, report.weights), ""]
    ]
    tally = Counter((problem.kind, problem.split) for problem in report.problems)
    for kind, (wrong, words) in KINDS.items():
        for title in (title for found, title in tally if found == kind):
            first, *others = [
                problem
                for problem in report.problems
                if (problem.kind, problem.split) == (kind, title)
            ]
            lines += [
                f"{'ERROR' if wrong else 'warning'}  {title}: {words}: {1 + len(others)}",
                f"    {first.text}",
            ]
            lines += [f"    {_brief(problem)}" for problem in others[: SHOWN - 1]]
            lines += [f"    and {len(others) - SHOWN + 1} more (--json=FILE lists all)"] * (
                len(others) >= SHOWN
            ) + [""]
    if report.splits[0].counts is not None:
        weights = statistics.format_tuple([float(f"{weight:.4g}") for weight in report.weights])
        lines += [
            "Suggested class weights, if rare classes matter more than the score of frequent ones:"
        ]
        lines += [f"  --config.losses.{loss}.class_weight='{weights}'" for loss in losses] + [""]
    if report.statistics:
        mean, std = (statistics.format_tuple(report.statistics[key]) for key in ("mean", "std"))
        empty = (
            ""
            if report.splits[0].spec.name == "folder"
            else " with --config.dataset.image_mean='()' --config.dataset.image_std='()'"
        )
        lines += [
            f"Wrote {report.statistics['file']}, which train.py reads{empty}: mean {mean}, std {std}",
            "",
        ]
    wrong = sum(count for (kind, _), count in tally.items() if KINDS[kind][0])
    rest = sum(tally.values()) - wrong
    verdict = (
        "ok: training can start"
        if report.ok
        else f"NOT OK: training would go wrong: {wrong} error{'s' * (wrong != 1)}"
    )
    return "\n".join([*lines, f"{verdict}, {rest} warning{'s' * (rest != 1)}"])


def _brief(problem: Problem) -> str:
    """The file and what is wrong, without the fix that the first of its kind has told."""
    room = len(problem.file) + 90
    return (
        problem.text
        if len(problem.text) <= room
        else f"{problem.text[:room].rsplit(' ', 1)[0]} ..."
    )


def _table(split: Split, weights: Sequence[float]) -> list[str]:
    """Sizes, formats and classes of a split."""
    counts, totals = split.counts, split.totals()
    sizes = ", ".join(f"{w}x{h} ({n})" for ((h, w),), n in split.tally("size")[:4]) + ", ..." * (
        len(split.tally("size")) > 4
    )
    formats = ", ".join(
        f"{channels} channels {dtype} ({n})"
        for (channels, dtype), n in split.tally("channels", "dtype")
    )
    width = max(map(len, (*split.spec.classes, "(ignore)")))
    train, unread = split.repeat > 0, np.count_nonzero(~counts.any(1))
    lines = [
        f"{split.title} (split '{split.split}' of {split.part.root or split.spec.name}): {len(counts)} pairs"
        + f", {unread} labels not counted" * bool(unread),
        f"  width x height: {sizes}", f"  images: {formats}",
        f"  {'':>3} {'class':{width}} {'pixels':>9} {'images':>7}" + f" {'weight':>7}" * train,
    ]  # fmt: skip
    images = (counts > 0).sum(0)
    for index, name in enumerate(split.spec.classes):
        share = totals[index] / max(totals[:-1].sum(), 1)
        weight = f" {weights[index]:7.3f}" * train
        lines.append(f"  {index:3} {name:{width}} {100 * share:7.3f} % {images[index]:7}{weight}")
    lines.append(
        f"  {IGNORE:3} {'(ignore)':{width}} {100 * totals[-1] / max(totals.sum(), 1):7.3f} % {images[-1]:7}"
    )
    return lines


def as_json(report: Report) -> str:
    """The whole report, with every problem."""
    splits = {
        split.title: {
            "split": split.split, "root": str(split.part.root), "pairs": 0 if split.counts is None else len(split.counts),
            "sizes": [{"size": size, "images": n} for (size,), n in split.tally("size")],
            "formats": [{"channels": channels, "dtype": dtype, "images": n} for (channels, dtype), n in split.tally("channels", "dtype")],
            "classes": list(split.spec.classes), "pixels": split.totals()[:-1].tolist(), "ignored": int(split.totals()[-1]),
            "images": [] if split.counts is None else (split.counts > 0).sum(0)[:-1].tolist(),
        }
        for split in report.splits
    }  # fmt: skip
    problems = [
        problem._asdict() | {"error": KINDS[problem.kind][0]} for problem in report.problems
    ]
    facts = {
        "ok": report.ok,
        "splits": splits,
        "problems": problems,
        "class_weights": report.weights,
        "statistics": report.statistics,
    }
    return json.dumps(facts, indent=1)
