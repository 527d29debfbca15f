"""Data set specs: class names, palette, label map (raw id -> class or 255 = ignore), and where the files lie.

`get_spec` is the door. Class names, palettes and long label maps are in classes.json.
"""

import colorsys
import dataclasses
import difflib
import functools
import json
import re
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

from jaxseg.constants import IGNORE
from jaxseg.data.class_list import read_classes
from jaxseg.data.label_map import read_label_map
from jaxseg.data.spec import DatasetSpec, Layout
from jaxseg.errors import DataError
from jaxseg.files import expand

SHORT_RANGE = (
    256  # label values up to which a range of label_map.txt is a part of DatasetSpec.label_map
)
LABEL_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".gif", ".npy")  # formats without loss


def check(config: Any) -> None:
    """Raise DataError if training on `config` would go wrong for its data; see checks.check."""
    from jaxseg.data.validate import checks

    checks.check(config)


# --- The table --------------------------------------------------------------------------------------------------------

_TRAINING = (("train", ("training",)), ("val", ("validation",)))
_TILES = Layout("img_dir/{split}/{stem}.png", (("ann_dir/{split}/{stem}.png", "from_one"),))


def _voc(
    labels: tuple[str, ...],
    lists: str,
    label_map: str = "identity",
    train: tuple[str, ...] = ("train",),
) -> Layout:
    return Layout(
        "JPEGImages/{stem}.jpg", tuple((f"{folder}/{{stem}}.png", label_map) for folder in labels),
        listing=f"ImageSets/{lists}/{{split}}.txt", splits=(("train", train),),
    )  # fmt: skip


def _vessels(label: str) -> Layout:
    labels = ((f"annotations/{{split}}/{label}", "identity"),)
    return Layout("images/{split}/{stem}.png", labels, splits=_TRAINING)


def _inside(folder: str, layout: Layout) -> Layout:
    """The same one level up: the root holds the folder that the archive unpacks to."""
    return dataclasses.replace(
        layout, images=f"{folder}/{layout.images}", labels=tuple((f"{folder}/{file}", ids) for file, ids in layout.labels),
        listing=layout.listing and f"{folder}/{layout.listing}",
    )  # fmt: skip


FOLDER = Layout(
    "images/{split}/{stem}.*",
    tuple((f"labels/{{split}}/{{stem}}{suffix}", "identity") for suffix in LABEL_SUFFIXES),
    nested=True,
)
# name: (key in classes.json, layout, other layouts that people have). Label maps: identity; from_one (0 is ignored, the rest moves down by one);
# last_ignored (one id more than there are classes, ignored); or a key of classes.json.
SPECS: dict[str, tuple] = {
    "cityscapes": ("cityscapes", Layout(
        "leftImg8bit/{split}/{stem}_leftImg8bit.png",
        (("gtFine/{split}/{stem}_gtFine_labelTrainIds.png", "identity"),
         ("gtFine/{split}/{stem}_gtFine_labelIds.png", "cityscapes_ids")),
        nested=True)),
    "dark_zurich": ("cityscapes", Layout(
        "rgb_anon/{split}/night/{stem}_rgb_anon.png",
        (("gt/{split}/night/{stem}_gt_labelTrainIds.png", "identity"),), nested=True)),
    "night_driving": ("cityscapes", Layout(
        "leftImg8bit/{split}/night/{stem}_leftImg8bit.png",
        (("gtCoarse_daytime_trainvaltest/{split}/night/{stem}_gtCoarse_labelTrainIds.png", "identity"),),
        splits=(("val", ("test",)),))),
    "ade20k": ("ade20k", Layout(
        "images/{split}/{stem}.jpg", (("annotations/{split}/{stem}.png", "from_one"),), splits=_TRAINING)),
    "voc12": ("voc12", _voc(("SegmentationClass",), "Segmentation")),
    "voc12aug": ("voc12", _voc(("SegmentationClass", "SegmentationClassAug"), "Segmentation", train=("train", "aug"))),
    "pascal_context": ("pascal_context", _voc(("SegmentationClassContext",), "SegmentationContext")),
    "pascal_context_59": ("pascal_context_59", _voc(("SegmentationClassContext",), "SegmentationContext", "from_one")),
    "coco_stuff10k": ("coco_stuff", Layout(
        "images/{split}2014/{stem}.jpg", (("annotations/{split}2014/{stem}_labelTrainIds.png", "from_one"),),
        splits=(("val", ("test",)),))),
    "coco_stuff164k": ("coco_stuff", Layout(
        "images/{split}2017/{stem}.jpg",
        (("annotations/{split}2017/{stem}_labelTrainIds.png", "identity"),
         ("annotations/{split}2017/{stem}.png", "coco_stuff_ids"))),
        Layout("{split}2017/{stem}.jpg", (("stuffthingmaps/{split}2017/{stem}.png", "coco_stuff_ids"),))),
    "loveda": ("loveda", _TILES, Layout(
        "{split}/images_png/{stem}.png", (("{split}/masks_png/{stem}.png", "from_one"),),
        splits=(("train", ("Train/Rural", "Train/Urban")), ("val", ("Val/Rural", "Val/Urban"))))),
    "potsdam": ("potsdam", _TILES),
    "vaihingen": ("potsdam", _TILES),
    "isaid": ("isaid", Layout(
        "img_dir/{split}/{stem}.png", (("ann_dir/{split}/{stem}_instance_color_RGB.png", "identity"),))),
    "mapillary_v1_65": ("mapillary_v1_65", Layout(  # the v2.0 archive, then the v1.x one
        "{split}/images/{stem}.jpg",
        (("{split}/v1.2/labels/{stem}.png", "last_ignored"), ("{split}/labels/{stem}.png", "last_ignored")), splits=_TRAINING)),
    "camvid": ("camvid", Layout("{split}/{stem}.png", (("{split}annot/{stem}.png", "last_ignored"),))),
    "drive": ("vessels", _vessels("{stem}_manual1.png")),
    "chase_db1": ("vessels", _vessels("{stem}_1stHO.png")),
    "hrf": ("vessels", _vessels("{stem}.png")),
    "stare": ("vessels", _vessels("{stem}.ah.png")),
}  # fmt: skip


# Where people's roots lie one level above.
for _name, _folders in {
    "ade20k": ("ADEChallengeData2016",), "voc12": ("VOC2012", "VOCdevkit/VOC2012"), "voc12aug": ("VOC2012", "VOCdevkit/VOC2012"),
    "pascal_context": ("VOC2010", "VOCdevkit/VOC2010"), "pascal_context_59": ("VOC2010", "VOCdevkit/VOC2010"),
    "dark_zurich": ("Dark_Zurich_val_anon",), "night_driving": ("NighttimeDrivingTest",), "camvid": ("CamVid",),
}.items():  # fmt: skip
    SPECS[_name] += tuple(_inside(folder, SPECS[_name][1]) for folder in _folders)


NUMBERED = ("loveda",)  # whose benchmark wants class numbers, not the values of its labels


@functools.cache
def _facts() -> dict[str, Any]:
    return json.loads(resources.files("jaxseg.data").joinpath("classes.json").read_text())


def first_ids(ids: Iterable[tuple[int, int]], num_classes: int) -> tuple[int, ...]:
    """The raw id of each class in pairs (raw id, class); of several the first."""
    first: dict[int, int] = {}
    for raw, index in ids:
        first.setdefault(index, raw)
    return tuple(first[index] for index in range(num_classes))


def label_map(name: str, num_classes: int) -> dict[int, int]:
    """The label map of this name (see SPECS) over `num_classes`."""
    identity = {i: i for i in range(num_classes)}
    if name == "identity":
        return identity
    if name == "from_one":
        return {0: IGNORE} | {i + 1: i for i in identity}
    if name == "last_ignored":
        return identity | {num_classes: IGNORE}
    return {int(raw): index for raw, index in _facts()["label_maps"][name].items()}


# --- Specs ------------------------------------------------------------------------------------------------------------


def list_datasets() -> list[str]:
    """Every name that `get_spec` knows."""
    return ["shapes", "folder", *SPECS]


def get_spec(name: str, root: str | Path = "", source: str = "files") -> DatasetSpec:
    """The spec of a data set as it lies below `root`: a `folder` lists its classes there, others differ in layout only.

    source 'tfds': of the TFDS data set below root, whose labels may hold other ids. Raises DataError for an unknown name, or a
    folder without a usable classes.txt.
    """
    root = str(root) and expand(root)
    if source == "tfds" and name != "shapes":
        from jaxseg.data.sources import records

        return records.get_spec(name, root)
    if name == "shapes":
        from jaxseg.data.sources import shapes

        return DatasetSpec(
            name, shapes.CLASSES, shapes.PALETTE, label_map("identity", len(shapes.CLASSES))
        )
    if name == "folder":
        return _folder_spec(root)
    if name not in SPECS:
        near = difflib.get_close_matches(str(name), list_datasets(), 1, 0.4)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise DataError(f"Unknown data set '{name}'.{hint} Known: {', '.join(list_datasets())}.")
    key, *layouts = SPECS[name]
    layout = next((layout for layout in layouts if root and layout.lies_in(root)), layouts[0])
    classes, palette = _facts()["classes"][key], _facts()["palettes"][key]
    ids = label_map(layout.labels[-1][1], len(classes))
    official = () if name in NUMBERED else first_ids(ids.items(), len(classes))
    return DatasetSpec(
        name, tuple(classes), tuple(tuple(color) for color in palette), ids, layout, official_ids=official,
        explicit_map=layout.labels[-1][1] != "identity",
    )  # fmt: skip


def trained_spec(data: Any) -> DatasetSpec:
    """The spec of config.dataset, in the run's order and with the statistics that the config has: what dataset.json keeps."""
    from jaxseg.data import class_order

    spec = class_order.config_spec(data)
    return dataclasses.replace(
        spec, image_mean=tuple(data.image_mean), image_std=tuple(data.image_std)
    )


def _folder_spec(root: str | Path) -> DatasetSpec:
    needs = "images/, labels/ and classes.txt"
    if not root:
        raise DataError(
            f"The data set 'folder' needs its folder: --config.dataset.root=DIR with {needs}.",
            field="dataset.root",
        )
    root = Path(root)
    if not root.is_dir():
        raise DataError(
            "no such folder",
            file=root,
            field="dataset.root",
            hint=f"config.dataset.root must hold {needs}",
        )
    file = root / "classes.txt"
    if not file.is_file():
        what = f"write the class names into it, one a line, the first is label value 0{_other_lists(root)}"
        raise DataError("no such file", file=file, hint=what)
    lines = read_classes(file)
    classes = [line for line in lines if not line.ignored]
    names = tuple(line.name for line in classes)
    mapped = read_label_map(root / "label_map.txt", names)
    order = iter(range(len(classes)))
    ranges = mapped or [
        (line.number, line.number, IGNORE if line.ignored else next(order)) for line in lines
    ]
    declared = tuple(line.color for line in classes)
    palette = tuple(
        color or default
        for color, default in zip(declared, default_palette(len(classes)), strict=True)
    )
    short = [found for found in ranges if found[1] - found[0] < SHORT_RANGE]
    return DatasetSpec(
        "folder", names, palette, {value: index for first, last, index in short for value in range(first, last + 1)}, FOLDER,
        official_ids=first_ids(((first, index) for first, _, index in ranges), len(names)),
        colors=declared if all(declared) else (),
        ignored_colors=tuple(line.color for line in lines if line.ignored and line.color),
        label_ranges=tuple(sorted(set(ranges) - set(short))),
        explicit_map=bool(mapped) or not lines[0].counted,
    )  # fmt: skip


def _other_lists(root: Path) -> str:
    """What a folder without classes.txt may hold in its place, for a message."""
    if prepared := next(root.glob("**/dataset_info.json"), None):
        return f" ({prepared.parent} is a prepared data set: --config.dataset.source=tfds reads it)"
    lists = sorted(
        file.name
        for file in root.glob("*.*")
        if file.is_file() and re.search("class|label.?map|labels|names", file.name.lower())
    )
    return f" (there is {lists[0]}: rename it if it is that list)" if lists else ""


def default_palette(count: int) -> list[tuple[int, int, int]]:
    """Distinct colours: hues a golden section apart, at three levels of saturation and brightness."""
    levels = ((0.75, 0.95), (0.95, 0.65), (0.45, 0.85))
    colors = (colorsys.hsv_to_rgb(i * 0.618034 % 1, *levels[i % 3]) for i in range(count))
    return [tuple(round(255 * value) for value in color) for color in colors]
