"""label_map.txt of a `folder`: what the values in its labels stand for."""

import difflib
import itertools
import re
from collections.abc import Sequence
from pathlib import Path

from jaxseg.constants import IGNORE
from jaxseg.data.class_list import IGNORED_NAMES, LARGEST, SMALLEST, read_list
from jaxseg.errors import DataError

Range = tuple[int, int, int]  # first and last label value, class number or IGNORE
MAP_LINE = re.compile(
    r"(?P<first>[+-]?\d+)(?:(?:-|\.\.|–)(?P<last>[+-]?\d+))?(?:\s*[,;:|=]\s*|\s+|$)(?P<name>.*)"
)


def read_label_map(file: Path, classes: Sequence[str]) -> list[Range]:
    """What label values stand for, in the order of the file's lines, `<value, or first-last> <class or ignore>`.

    Values are those of int32 and uint32; a range is written 7-12, or -10..-1 as well.

    Args:
        file: label_map.txt.
        classes: the names that it may use, in their order.

    Returns:
        The ranges, of which no two share a value; [] if there is no such file.

    Raises:
        DataError: a line that cannot be read, a value that has two, a class that has none.
    """
    if not file.is_file():
        return []
    lines = [
        (at, line.split("#")[0].strip()) for at, line in enumerate(read_list(file).splitlines(), 1)
    ]
    lines = [(at, line) for at, line in lines if line]
    ranges = [_map_line(file, at, line, classes) for at, line in lines]
    in_order = sorted(zip(ranges, (at for at, _ in lines)))
    for ((_, last, _), at), ((first, _, _), other) in itertools.pairwise(in_order):
        if first <= last:
            raise DataError(
                f"line {max(at, other)}: label value {first} has a line already",
                file=file,
                hint="keep one of them",
            )
    mapped = {index for *_, index in ranges}
    if missing := [name for index, name in enumerate(classes) if index not in mapped]:
        raise DataError(
            f"no label value stands for class '{missing[0]}'",
            file=file,
            hint="add its line, or take it out of classes.txt",
        )
    return ranges


def _map_line(file: Path, at: int, line: str, classes: Sequence[str]) -> Range:
    found = MAP_LINE.fullmatch(line)
    if not found or not found["name"].strip():
        hint = "write `7 road`, `0-6 ignore` or `-10..-1 ignore`"
        raise DataError(
            f"line {at}: '{line}' is not a label value and a class", file=file, hint=hint
        )
    first, last, name = (
        int(found["first"]),
        int(found["last"] or found["first"]),
        found["name"].strip(),
    )
    if first > last or first < SMALLEST or last > LARGEST:
        wrong = (
            f"ends below where it begins, at {first}"
            if first > last
            else f"is not within {SMALLEST}..{LARGEST}"
        )
        raise DataError(
            f"line {at}: '{line}' {wrong}",
            file=file,
            hint="label values are those of int32 and uint32, in rising order",
        )
    if name not in classes and name.lower() not in IGNORED_NAMES:
        near = (difflib.get_close_matches(name, classes, 1, 0.4) or classes)[0]
        raise DataError(
            f"line {at}: '{name}' is no class of classes.txt",
            file=file,
            hint=f"write one of them, '{near}' for instance, or 'ignore'",
        )
    return first, last, classes.index(name) if name in classes else IGNORE
