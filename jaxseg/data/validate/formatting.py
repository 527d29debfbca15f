"""Reports of check_data as text for a terminal, and as JSON."""

import json
from collections.abc import Iterator, Sequence

import numpy as np

from jaxseg.constants import IGNORE
from jaxseg.data.statistics import format_tuple
from jaxseg.data.validate.checks import CheckedSplit
from jaxseg.data.validate.problems import KINDS, Problem
from jaxseg.data.validate.report import DataReport

PRINTED_FILES = 3  # of each kind of problem
PRINTED_SIZES = 4  # of each split
BRIEF_LENGTH = 90  # characters of a problem beside the file's name


def as_text(report: DataReport, losses: Sequence[str] = ("decode",)) -> str:
    """Format a report for a terminal.

    Args:
        report: The report.
        losses: Labels of the losses that class weights are suggested for.
    """
    lines: list[str] = []
    for split in report.splits:
        if split.counts is not None:
            lines += [*_split_table(split, split.counts, report.weights), ""]
    lines += _problems(report.problems)
    if report.splits[0].counts is not None:
        weights = format_tuple([float(f"{weight:.4g}") for weight in report.weights])
        lines.append(
            "Suggested class weights, if rare classes matter more than the score of frequent ones:"
        )
        lines += [f"  --config.losses.{loss}.class_weight='{weights}'" for loss in losses]
        lines.append("")
    if report.statistics:
        mean, std = format_tuple(report.statistics.mean), format_tuple(report.statistics.std)
        condition = ""
        if report.splits[0].spec.name != "folder":
            condition = " with --config.dataset.image_mean='()' --config.dataset.image_std='()'"
        file = report.statistics.file
        lines += [f"Wrote {file}, which train.py reads{condition}: mean {mean}, std {std}", ""]
    return "\n".join([*lines, _verdict(report)])


def _problems(problems: Sequence[Problem]) -> Iterator[str]:
    """Yield lines about the problems, by kind and split."""
    groups: dict[tuple[str, str], list[Problem]] = {}
    for problem in problems:
        groups.setdefault((problem.kind, problem.split), []).append(problem)
    order = list(KINDS)
    for (kind, title), group in sorted(groups.items(), key=lambda item: order.index(item[0][0])):
        severity = "ERROR" if KINDS[kind].is_error else "warning"
        first, *others = group
        yield f"{severity}  {title}: {KINDS[kind].words}: {len(group)}"
        yield f"    {first.text}"
        for problem in others[: PRINTED_FILES - 1]:
            yield f"    {_brief(problem)}"
        if len(group) > PRINTED_FILES:
            yield f"    and {len(group) - PRINTED_FILES} more (the JSON report lists all)"
        yield ""


def _brief(problem: Problem) -> str:
    """Return file and problem, without the hint, which the first of its kind has given."""
    length = len(problem.file) + BRIEF_LENGTH
    if len(problem.text) <= length:
        return problem.text
    return f"{problem.text[:length].rsplit(' ', 1)[0]} ..."


def _verdict(report: DataReport) -> str:
    """Return the last line."""
    errors = sum(KINDS[problem.kind].is_error for problem in report.problems)
    warnings = _count(len(report.problems) - errors, "warning")
    if report.ok:
        return f"ok: training can start, {warnings}"
    return f"NOT OK: training would go wrong: {_count(errors, 'error')}, {warnings}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _split_table(
    split: CheckedSplit, counts: np.ndarray, weights: Sequence[float]
) -> Iterator[str]:
    """Yield lines about sizes, formats and classes of a split.

    Args:
        split: The split.
        counts: Its `counts`, int64 [N, K + 1].
        weights: Suggested weight of each class.
    """
    unread = np.count_nonzero(~counts.any(1))
    heading = f"{split.title} (split '{split.split}' of {split.ref.root or split.spec.name})"
    yield f"{heading}: {len(counts)} pairs" + (f", {unread} labels not counted" if unread else "")
    sizes = split.count_by("size")
    listed = [f"{width}x{height} ({n})" for ((height, width),), n in sizes[:PRINTED_SIZES]]
    more = ", ..." if len(sizes) > PRINTED_SIZES else ""
    yield f"  width x height: {', '.join(listed)}{more}"
    formats = split.count_by("channels", "dtype")
    listed = [f"{channels} channels {dtype} ({n})" for (channels, dtype), n in formats]
    yield f"  images: {', '.join(listed)}"
    yield from _class_table(split, counts, weights)


def _class_table(
    split: CheckedSplit, counts: np.ndarray, weights: Sequence[float]
) -> Iterator[str]:
    """Yield a line for each class: share of the pixels, images and, in training, weight."""
    is_train = split.repeat > 0
    name_width = max(len(name) for name in (*split.spec.classes, "(ignore)"))
    totals, images = split.totals(), (counts > 0).sum(0)
    weight_title = f" {'weight':>7}" if is_train else ""
    yield f"  {'':>3} {'class':{name_width}} {'pixels':>9} {'images':>7}{weight_title}"
    for index, name in enumerate(split.spec.classes):
        percent = 100 * (totals[index] / max(totals[:-1].sum(), 1))
        weight = f" {weights[index]:7.3f}" if is_train else ""
        yield f"  {index:3} {name:{name_width}} {percent:7.3f} % {images[index]:7}{weight}"
    percent = 100 * totals[-1] / max(totals.sum(), 1)
    yield f"  {IGNORE:3} {'(ignore)':{name_width}} {percent:7.3f} % {images[-1]:7}"


def as_json(report: DataReport) -> str:
    """Format a report, with all problems, as JSON."""
    problems = [
        problem._asdict() | {"error": KINDS[problem.kind].is_error} for problem in report.problems
    ]
    statistics = report.statistics and report.statistics._asdict()
    content = {
        "ok": report.ok,
        "splits": {split.title: _split_facts(split) for split in report.splits},
        "problems": problems,
        "class_weights": report.weights,
        "statistics": statistics,
    }
    return json.dumps(content, indent=1)


def _split_facts(split: CheckedSplit) -> dict[str, object]:
    """Return the facts about a split, for JSON."""
    totals = split.totals()
    images: list[int] = []
    pairs = 0
    if split.counts is not None:
        images = (split.counts > 0).sum(0)[:-1].tolist()
        pairs = len(split.counts)
    formats = split.count_by("channels", "dtype")
    return {
        "split": split.split,
        "root": str(split.ref.root),
        "pairs": pairs,
        "sizes": [{"size": size, "images": n} for (size,), n in split.count_by("size")],
        "formats": [
            {"channels": channels, "dtype": dtype, "images": n} for (channels, dtype), n in formats
        ],
        "classes": list(split.spec.classes),
        "pixels": totals[:-1].tolist(),
        "ignored": int(totals[-1]),
        "images": images,
    }
