"""The classes.txt of a `folder`, in the forms that people and other programs write it.

A class list that could be read in two ways is an error, since a wrong guess shifts every class.
"""

import ast
import csv
import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxseg.errors import DataError
from jaxseg.files import read_text

MAX_CLASSES = 254  # 254 marks ids that the label map does not know, 255 is ignored
# Names that are ignored instead of being classes; so is labelme's, which has no number.
IGNORED_NAMES = ("ignore", "void")
LABELME_IGNORE = "__ignore__"
SMALLEST, LARGEST = -(2**31), 2**32 - 1  # of a label value: int32 and uint32
# Headings of columns that hold names or label values, without spaces and punctuation.
NAME_OR_NUMBER = (
    *("id", "ids", "idx", "index", "value", "values", "pixelvalue", "labelvalue", "rastervalue"),
    *("number", "gridcode", "classid", "classindex", "classvalue", "classnumber", "labelid"),
    *("categoryid", "trainid", "name", "names", "class", "classes", "classname", "classnames"),
    *("label", "labels", "labelname", "category", "categories", "categoryname"),
)
# Headings of columns that hold colours -> the channels in them.
COLORS = {
    **{"r": "r", "red": "r", "g": "g", "green": "g", "b": "b", "blue": "b"},
    **dict.fromkeys(("color", "colour", "rgb", "hex"), "rgb"),
}
INTEGER = re.compile(r"[+-]?\d+")
# 'road:128,64,128:part,part:action'; everything but the name may be missing.
CVAT = re.compile(r"(?P<name>[^:]+):(?P<color>\d+,\d+,\d+|):[^:]*:[^:]*")
HEX = re.compile(r"(?P<name>.*?)[\s,;:|]+#(?P<hex>[0-9a-fA-F]{6})")
PAINTED = re.compile(r"(?P<name>.*?\S)[\s,;:|=]+[(\[]?(?P<color>\d+[\s,;]+\d+[\s,;]+\d+)[)\]]?")
COLOR_FIRST = re.compile(
    r"[(\[]?(?P<color>\d+[\s,;]+\d+[\s,;]+\d+)[)\]]?[\s,;:|=]+(?P<name>(?!\d+\b).*\D.*)"
)
NUMBER_FIRST = re.compile(r"(?P<number>[+-]?\d+)(?:\s*[,;:|=\t]\s*|[.)]\s+|\s+)(?P<name>\S.*)")
NUMBER_LAST = re.compile(r"(?P<name>.*?[^\s,;:|=])(?:\s*[,;:|=\t]\s*|\s+)(?P<number>[+-]?\d+)")


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of classes.txt.

    Attributes:
        at: Its line number, for messages.
        name: Name of the class.
        color: RGB in colour labels, or ().
        number: Label value; None while it is not known.
        counted: Whether the label value follows from the line's place and was not written there.
    """

    at: int
    name: str
    color: tuple[int, ...] = ()
    number: int | None = None
    counted: bool = False

    @property
    def ignored(self) -> bool:
        """Whether this is not a class: its pixels become 255."""
        return self.name.lower() in (*IGNORED_NAMES, LABELME_IGNORE)

    @property
    def value(self) -> int:
        """The label value, which every line that `read_classes` returns has."""
        assert self.number is not None
        return self.number


# --- classes.txt ---


def read_classes(file: Path) -> list[Line]:
    """Read the classes in a file, each with its label value.

    The file has one name a line, the first is label value 0; a colour may follow the name. If every
    line gives a number, that is the label value. CVAT's and labelme's lists, tables with headings,
    one line with all names, and lists in JSON or Python are read as well.

    Raises:
        DataError: It is not a class list, or could be read in two ways.
    """
    text = read_list(file)
    lines = [(at, _clean(line)) for at, line in enumerate(text.splitlines(), 1)]
    lines = [(at, line) for at, line in lines if line and not line.startswith("#")]
    if not lines:
        raise DataError(
            "holds no class",
            file=file,
            hint="write the class names into it, one a line, the first is label value 0",
        )
    found = (
        _literal(file, text) or _table(file, lines) or _one_line(lines) or _plain_lines(file, lines)
    )
    found = _number(file, found)
    _check(file, found)
    return found


def read_list(file: Path) -> str:
    """Return the text of a list; raise DataError for numbers far from label values and colours."""
    text = read_text(file)
    if long := re.search(r"\d{20,}", text):
        raise DataError(
            f"holds a number of {len(long[0])} digits",
            file=file,
            hint=f"label values are at most {LARGEST}",
        )
    return text


def _clean(line: str) -> str:
    """Return a line without surrounding blanks, a list's bullet, and trailing separators."""
    line = re.sub(r"^[-*•]\s+", "", line.strip().strip("\ufeff"))
    return line if CVAT.fullmatch(line) else line.rstrip(",;:| \t")


def _unquote(name: str) -> str:
    name = name.strip()
    if len(name) > 1 and name[0] == name[-1] and name[0] in "'\"":
        return name[1:-1].strip()
    return name


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text))


def _plain_lines(file: Path, lines: Sequence[tuple[int, str]]) -> list[Line]:
    """Read one class a line: name and colour, and a number on every line or on none."""
    lines = _without_heading(file, lines)
    colors = [_split_color(line)[1] for _, line in lines]
    lines = [(at, _split_color(line)[0]) for at, line in lines]
    numbered: list[tuple[str, int | None]] = [*_numbers(lines)]
    if not numbered:
        numbered = [(name, None) for _, name in lines]
        unnumbered = [(at, name) for at, name in lines if not NUMBER_FIRST.fullmatch(name)]
        if len(unnumbered) < len(lines):
            at, name = unnumbered[0]
            raise DataError(
                f"line {at}: '{name}' has no number, but other lines have one",
                file=file,
                hint=f"write the label value before every name, `0 {name}`, or before none",
            )
    found = []
    for (at, line), (name, number), color in zip(lines, numbered, colors):
        if not color and number is not None:
            name, color = _split_color(name)  # of `0 128 64 128 road`
        number_last = NUMBER_LAST.fullmatch(line) and not NUMBER_FIRST.fullmatch(line)
        unclear = number is not None and color and number_last
        if unclear or re.search(r"[,;|\t]\s*[\d.]+$|(?:[\s,;]+\d*\.\d+){3}$", name):
            raise DataError(
                f"line {at}: it is not clear what the numbers of '{line}' are",
                file=file,
                hint="write `0 road 128 64 128`: label value, name, colour; or add a line of "
                "headings, `name,id,r,g,b`",
            )
        found.append(Line(at, _unquote(name), color, number))
    return found


def _without_heading(file: Path, lines: Sequence[tuple[int, str]]) -> Sequence[tuple[int, str]]:
    """Return the lines without a heading above numbers or colours.

    Raises:
        DataError: The first line is not clearly a heading or a class, or is the number of classes.
    """
    (at, first), *rest = lines
    if rest and _is_heading(first):
        if _numbers(rest) or all(_split_color(line)[1] for _, line in rest):
            return rest
        raise DataError(
            f"line {at}: '{first}' looks like a heading, not like a class",
            file=file,
            hint="remove the line; if it is a class, write the label value before every name, "
            f"`0 {first}`",
        )
    if first == str(len(rest)) and not any(INTEGER.fullmatch(line) for _, line in rest):
        problem = f"line {at}: '{first}' is the number of classes, not a class"
        raise DataError(problem, file=file, hint="remove the line")
    return lines


def _numbers(lines: Sequence[tuple[int, str]]) -> list[tuple[str, int]]:
    """Return [(name, number)] of lines that all begin, or all end, with a number; [] for others."""
    first = [match for _, line in lines if (match := NUMBER_FIRST.fullmatch(line))]
    if len(first) == len(lines):
        return [(match["name"], int(match["number"])) for match in first]
    last = [match for _, line in lines if (match := NUMBER_LAST.fullmatch(line))]
    if len(last) < len(lines) or len(lines) == 1:
        return []
    pairs = [(match["name"], int(match["number"])) for match in last]
    # 'sky 1' and 'road 2' are names and label values, 'lane 1' and 'lane 2' are names.
    return pairs if all(len(set(column)) == len(pairs) for column in zip(*pairs)) else []


def _split_color(line: str) -> tuple[str, tuple[int, ...]]:
    """Split name and colour: 'road 128 64 128' -> ('road', (128, 64, 128)), without colour ()."""
    if found := CVAT.fullmatch(line):
        return found["name"].strip(), _integers(found["color"])
    if found := HEX.fullmatch(line):
        return found["name"], tuple(bytes.fromhex(found["hex"]))
    if found := PAINTED.fullmatch(line) or COLOR_FIRST.fullmatch(line):
        return found["name"], _integers(found["color"])
    return line, ()


def _one_line(lines: Sequence[tuple[int, str]]) -> list[Line]:
    """Read the classes of a file with a single line, 'sky, road, car'; [] for anything else."""
    (at, line), *rest = lines
    names = [_unquote(name) for name in re.split(r"[,;\t|]", line)]
    if rest or len(names) < 2 or re.search(r"\d", line):
        return []
    return [Line(at, name) for name in names if name]


def _number(file: Path, found: list[Line]) -> list[Line]:
    """Return the lines with label values: their places, ignored lines counted, if none is given."""
    if found and found[0].number is not None:
        return found
    if marked := [line for line in found[1:] if line.name == LABELME_IGNORE]:
        raise DataError(
            f"line {marked[0].at}: {LABELME_IGNORE} is not the first class",
            file=file,
            hint="put it first, where it has no number, or number all lines",
        )
    first = -1 if found and found[0].name == LABELME_IGNORE else 0
    return [
        dataclasses.replace(line, number=number, counted=True)
        for number, line in enumerate(found, first)
    ]


def _check(file: Path, found: Sequence[Line]) -> None:
    """Raise DataError unless these can be the classes of a data set."""
    names = [line.name for line in found if not line.ignored]
    if not names:
        raise DataError("holds no class that is not ignored", file=file)
    if len(names) == 1:
        problem = "holds one class; softmax needs two or more: list the background as class 0"
        raise DataError(problem, file=file)
    if len(names) > MAX_CLASSES:
        raise DataError(f"{len(names)} classes; at most {MAX_CLASSES} are possible", file=file)
    owners: dict[Any, str] = {}
    for line in found:
        _check_line(file, line, names)
        for word, value in (("colour", line.color), ("label value", line.number)):
            if value in owners:
                raise DataError(
                    f"line {line.at}: {word} {value} of '{line.name}' is also that of "
                    f"'{owners[value]}'",
                    file=file,
                    hint=f"{word}s must differ",
                )
            if value != ():
                owners[value] = line.name


def _check_line(file: Path, line: Line, names: Sequence[str]) -> None:
    """Raise DataError unless a line is a class on its own."""
    here = f"line {line.at}: "
    if not line.name:
        raise DataError(f"{here}a class without a name", file=file)
    if names.count(line.name) > 1:
        problem = f"{here}class '{line.name}' is listed {names.count(line.name)} times"
        raise DataError(problem, file=file, hint="names must differ")
    if not SMALLEST <= line.value <= LARGEST:
        problem = f"{here}label value {line.value} is not within {SMALLEST}..{LARGEST}"
        raise DataError(problem, file=file)
    if line.color and max(line.color) > 255:
        problem = f"{here}colour {line.color} of '{line.name}' is not within 0..255"
        raise DataError(problem, file=file, hint=f"write '{line.name} 128 64 0'")


# --- Tables with headings ---


def _is_heading(line: str) -> bool:
    """Return whether every word of a line is a table heading, and not all are a colour's."""
    cells = (
        [_word(cell) for cell in re.split(separators, line)] for separators in (r"[,;\t|:]", r"\s+")
    )
    return any(
        {*NAME_OR_NUMBER, *COLORS}.issuperset(words) and not COLORS.keys() >= set(words)
        for words in cells
    )


def _word(cell: str) -> str:
    return re.sub(r"[\W_]", "", cell.lower())


def _table(file: Path, lines: Sequence[tuple[int, str]]) -> list[Line]:
    """Read a table with headings such as `id,name,r,g,b`; [] if there are no such headings.

    Columns with other headings are ignored.
    """
    (at, first), *rest = lines
    separator = next((sign for sign in "\t;,|" if sign in first), "")
    heads = [_word(cell) for cell in first.split(separator)] if separator else []
    known = [head in NAME_OR_NUMBER or head in COLORS for head in heads]
    if len(rest) < 2 or sum(known) < 2 or not any(head in NAME_OR_NUMBER for head in heads):
        return []
    texts = (line for _, line in rest)
    rows = [
        [cell.strip() for cell in row]
        for row in csv.reader(texts, delimiter=separator, skipinitialspace=True)
    ]
    for (number, _), row in zip(rest, rows):
        if len(row) != len(heads):
            raise DataError(
                f"line {number}: {len(row)} columns, where line {at} has {len(heads)} headings",
                file=file,
            )
    columns = dict(zip(heads, zip(*rows)))
    numeric = {head for head, cells in columns.items() if all(map(INTEGER.fullmatch, cells))}
    names = [head for head in columns if head in NAME_OR_NUMBER and head not in numeric]
    numbers = [head for head in columns if head in NAME_OR_NUMBER and head in numeric]
    if len(names) != 1 or len(numbers) > 1 or len(columns) != len(heads):
        raise DataError(
            f"line {at}: it is not clear which column holds the name and which the label value",
            file=file,
            hint="keep one column of each: `id,name`",
        )
    paint = {COLORS[head]: cells for head, cells in columns.items() if head in COLORS}
    cells: list[tuple[str, ...]] = [(cell,) for cell in paint.get("rgb", ())]
    if all(letter in paint for letter in "rgb"):
        cells = list(zip(paint["r"], paint["g"], paint["b"]))
    colors: list[tuple[int, ...]] = [()] * len(rows)
    if cells:
        colors = [_read_color(file, number, cell) for (number, _), cell in zip(rest, cells)]
    values: list[int | None] = [None] * len(rows)
    if numbers:
        values = [int(cell) for cell in columns[numbers[0]]]
    return [
        Line(number, _unquote(name), color, value)
        for (number, _), name, color, value in zip(rest, columns[names[0]], colors, values)
    ]


def _read_color(file: Path, at: int, cells: Sequence[str]) -> tuple[int, ...]:
    """Return the colour in ('128', '64', '0'), ('#804000',) or ('128 64 0',): (128, 64, 0)."""
    text = " ".join(cells)
    if found := re.fullmatch(r"#?([0-9a-fA-F]{6})", text.strip()):
        return tuple(bytes.fromhex(found[1]))
    if len(_integers(text)) != 3 or re.search(r"\d\.\d|-", text):
        raise DataError(
            f"line {at}: '{text}' is not a colour", file=file, hint="write 128 64 0 or #804000"
        )
    return _integers(text)


# --- JSON and Python ---


def _literal(file: Path, text: str) -> list[Line]:
    """Read a list of names, of entries with `name`, `id`, `color`, or {number: name}; else []."""
    text = re.sub(r"^\s*\w+\s*[:=]\s*(?=[\[({])", "", text.strip().rstrip(","))
    if text[:1] not in tuple("[{("):
        return []
    try:
        value = json.loads(text)
    except ValueError:
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            raise DataError(
                "begins like a list in JSON or Python, but is not one",
                file=file,
                hint="write one class name a line",
            ) from None
    try:
        return _entries(value)
    except (KeyError, TypeError, ValueError, AttributeError):
        problem = (
            "is not a list of class names, of entries with `name` and `id`, or of numbers with "
            "names"
        )
        raise DataError(problem, file=file, hint="write one class name a line") from None


def _entries(value: Any) -> list[Line]:
    if isinstance(value, dict):  # {'0': 'road'} or {'road': 0}
        swapped = [isinstance(key, str) and not INTEGER.fullmatch(key) for key in value]
        pairs = [pair[::-1] if swap else pair for pair, swap in zip(value.items(), swapped)]
        value = [{"id": int(number), "name": name} for number, name in pairs]
    entries = [{"name": entry} if isinstance(entry, str) else dict(entry) for entry in value]
    numbers = [entry.get("id") for entry in entries]
    if len({number is None for number in numbers}) > 1 or not all(
        isinstance(entry["name"], str) for entry in entries
    ):
        raise ValueError
    values = [None if number is None else int(number) for number in numbers]
    return [
        Line(1, entry["name"].strip(), _entry_color(entry.get("color", ())), number)
        for entry, number in zip(entries, values)
    ]


def _entry_color(color: Any) -> tuple[int, ...]:
    """Return the colour in [128, 64, 0] or '#804000': (128, 64, 0)."""
    if isinstance(color, str):
        color = bytes.fromhex(color.removeprefix("#"))
    values = tuple(int(value) for value in color)
    if len(values) not in (0, 3):
        raise ValueError
    return values
