"""The label_map.txt of a `folder`: the class of each value in its labels."""

import itertools
import re
from collections.abc import Sequence
from pathlib import Path

from jaxseg.constants import IGNORE
from jaxseg.data.class_list import IGNORED_NAMES, LARGEST, SMALLEST, read_list
from jaxseg.data.spec import LabelRange
from jaxseg.errors import DataError
from jaxseg.registry import find_nearest

MAP_LINE = re.compile(
    r"(?P<first>[+-]?\d+)"
    r"(?:(?:-|\.\.|\u2013)(?P<last>[+-]?\d+))?"  # an en dash as well
    r"(?:\s*[,;:|=]\s*|\s+|$)"
    r"(?P<name>.*)"
)


def read_label_map(file: Path, classes: Sequence[str]) -> list[LabelRange]:
    """Read the label map of a `folder`, in the order of the file's lines.

    A line is `<value, or first-last> <class or ignore>`. Values are those of int32 and uint32; a
    range is written 7-12, or -10..-1.

    Args:
        file: label_map.txt.
        classes: Class names that it may use, in their order.

    Returns:
        (first value, last value, class index or 255) of each line; no two share a value. [] if
        there is no such file.

    Raises:
        DataError: A line cannot be read, a value has two lines, or a class has none.
    """
    if not file.is_file():
        return []
    lines = [
        (at, line.split("#")[0].strip()) for at, line in enumerate(read_list(file).splitlines(), 1)
    ]
    lines = [(at, line) for at, line in lines if line]
    ranges = [_parse_line(file, at, line, classes) for at, line in lines]
    in_order = sorted(zip(ranges, (at for at, _ in lines)))
    for ((_, last, _), at), ((first, _, _), other) in itertools.pairwise(in_order):
        if first <= last:
            problem = f"line {max(at, other)}: label value {first} has a line already"
            raise DataError(problem, file=file, hint="keep one of them")
    mapped = {index for *_, index in ranges}
    if missing := [name for index, name in enumerate(classes) if index not in mapped]:
        raise DataError(
            f"no label value stands for class '{missing[0]}'",
            file=file,
            hint="add its line, or take it out of classes.txt",
        )
    return ranges


def _parse_line(file: Path, at: int, line: str, classes: Sequence[str]) -> LabelRange:
    """Return the range and the class of line number `at`."""
    found = MAP_LINE.fullmatch(line)
    if not found or not found["name"].strip():
        hint = "write `7 road`, `0-6 ignore` or `-10..-1 ignore`"
        raise DataError(
            f"line {at}: '{line}' is not a label value and a class", file=file, hint=hint
        )
    first, last = int(found["first"]), int(found["last"] or found["first"])
    name = found["name"].strip()
    wrong = ""
    if first > last:
        wrong = f"ends below where it begins, at {first}"
    elif first < SMALLEST or last > LARGEST:
        wrong = f"is not within {SMALLEST}..{LARGEST}"
    if wrong:
        hint = "label values are those of int32 and uint32, in rising order"
        raise DataError(f"line {at}: '{line}' {wrong}", file=file, hint=hint)
    if name in classes:
        return first, last, classes.index(name)
    if name.lower() in IGNORED_NAMES:
        return first, last, IGNORE
    near = find_nearest(name, classes) or classes[0]
    raise DataError(
        f"line {at}: '{name}' is not a class of classes.txt",
        file=file,
        hint=f"write one of them, '{near}' for instance, or 'ignore'",
    )
