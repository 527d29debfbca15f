"""The spec of a `folder` data set, from its classes.txt and label_map.txt."""

import colorsys
import re
from collections.abc import Sequence
from pathlib import Path

from jaxseg.constants import IGNORE
from jaxseg.data.builtin import raw_id_per_class
from jaxseg.data.class_list import read_classes
from jaxseg.data.label_map import read_label_map
from jaxseg.data.spec import DatasetSpec, LabelRange, Layout
from jaxseg.errors import DataError
from jaxseg.files import expand

CLASSES_FILE = "classes.txt"
LABEL_MAP_FILE = "label_map.txt"
SHORT_RANGE = 256  # longest range of label_map.txt that becomes entries of DatasetSpec.label_map
LABEL_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".gif", ".npy")  # lossless formats
CONTENTS = "images/, labels/ and classes.txt"

FOLDER = Layout(
    "images/{split}/{stem}.*",
    tuple((f"labels/{{split}}/{{stem}}{suffix}", "identity") for suffix in LABEL_SUFFIXES),
    nested=True,
)


def read_folder_spec(root: str | Path) -> DatasetSpec:
    """Read the spec of the `folder` data set in `root`.

    Raises:
        DataError: There is no such folder, or it has no usable classes.txt or label_map.txt.
    """
    if not root:
        raise DataError(
            f"the data set 'folder' needs its folder: config.dataset.root=DIR with {CONTENTS}",
            field="dataset.root",
        )
    root = expand(root)
    if not root.is_dir():
        hint = f"config.dataset.root must hold {CONTENTS}"
        raise DataError("no such folder", file=root, field="dataset.root", hint=hint)
    file = root / CLASSES_FILE
    if not file.is_file():
        hint = (
            "write the class names into it, one a line, the first is label value 0"
            f"{_other_lists(root)}"
        )
        raise DataError("no such file", file=file, hint=hint)
    lines = read_classes(file)
    classes = [line for line in lines if not line.ignored]
    names = tuple(line.name for line in classes)
    mapped = read_label_map(root / LABEL_MAP_FILE, names)
    order = iter(range(len(classes)))
    ranges: list[LabelRange] = mapped or [
        (line.value, line.value, IGNORE if line.ignored else next(order)) for line in lines
    ]
    short = [found for found in ranges if found[1] - found[0] < SHORT_RANGE]
    label_map = {value: index for first, last, index in short for value in range(first, last + 1)}
    declared = [line.color for line in classes]
    defaults = default_palette(len(classes))
    return DatasetSpec(
        "folder",
        names,
        tuple(_rgb(color or default) for color, default in zip(declared, defaults, strict=True)),
        label_map,
        FOLDER,
        submission_ids=raw_id_per_class(((first, index) for first, _, index in ranges), len(names)),
        colors=tuple(map(_rgb, declared)) if all(declared) else (),
        ignored_colors=tuple(_rgb(line.color) for line in lines if line.ignored and line.color),
        label_ranges=tuple(sorted(set(ranges) - set(short))),
        explicit_map=bool(mapped) or not lines[0].counted,
    )


def _rgb(color: Sequence[int]) -> tuple[int, int, int]:
    red, green, blue = color
    return red, green, blue


def _other_lists(root: Path) -> str:
    """Return, for a message, which file of a folder may be its list of classes."""
    if prepared := next(root.glob("**/dataset_info.json"), None):
        return f" ({prepared.parent} is a prepared data set: config.dataset.source=tfds reads it)"
    lists = sorted(
        file.name
        for file in root.glob("*.*")
        if file.is_file() and re.search("class|label.?map|labels|names", file.name.lower())
    )
    return f" (there is {lists[0]}: rename it if it is that list)" if lists else ""


def default_palette(count: int) -> list[tuple[int, int, int]]:
    """Return `count` distinct RGB colours.

    Hues are a golden section apart, at three levels of saturation and brightness.
    """
    levels = ((0.75, 0.95), (0.95, 0.65), (0.45, 0.85))
    colors = (colorsys.hsv_to_rgb(i * 0.618034 % 1, *levels[i % 3]) for i in range(count))
    return [
        (round(255 * red), round(255 * green), round(255 * blue)) for red, green, blue in colors
    ]
