"""Data set specs: class names, palette, label map (raw id -> class or 255 = ignore), and where the files lie.

`get_spec` is the door. Class names, palettes and long label maps are in classes.json.
"""

import colorsys
import dataclasses
import difflib
import functools
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from jaxseg.errors import DataError
from jaxseg.presets import IMAGENET

IGNORE = 255
MAX_CLASSES = 254  # 254 marks ids that the label map does not know, 255 is ignored
IGNORED_NAMES = ("ignore", "void")  # with a colour in classes.txt, or in label_map.txt, these are no class but ignored
LABEL_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".gif", ".npy")  # formats without loss


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where image/label pairs lie below a root.

    images: pattern with {split} and {stem}; a suffix `.*` stands for every image format. labels: (pattern, label map)
    in order of preference, the first that exists counts. listing: a file with one stem a line, '' to take all files.
    splits: (our name, the folders or listings it is made of); other names stand for themselves.
    nested: {stem} may hold folders.
    """

    images: str
    labels: tuple[tuple[str, str], ...]
    listing: str = ""
    splits: tuple[tuple[str, tuple[str, ...]], ...] = ()
    nested: bool = False

    def parts(self, split: str) -> tuple[str, ...]:
        """The data set's own names for `split`."""
        return dict(self.splits).get(split, (split,))

    def lies_in(self, root: Path) -> bool:
        """Whether the folder of a training or validation split's images is there."""
        folders = (self.images.split("{stem}")[0].replace("{split}", part) for split in ("train", "val") for part in self.parts(split))
        return any((root / folder).is_dir() for folder in folders)


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """A data set: classes, RGB palette, label map of its official label files, and image statistics (RGB, 0..255).

    An id that is not in the label map is an error, 255 excepted, which is always ignored. `colors`: RGB of each class
    in colour labels, () if such labels cannot be read; `ignored_colors`: those that mean 255. official_ids: what stands for each class
    in files for the data set's benchmark, () for the class numbers themselves.
    """

    name: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    label_map: Mapping[int, int]
    layout: Layout | None = None
    ignore_index: int = IGNORE
    image_mean: tuple[float, ...] = IMAGENET["image_mean"]
    image_std: tuple[float, ...] = IMAGENET["image_std"]
    colors: tuple[tuple[int, int, int], ...] = ()
    ignored_colors: tuple[tuple[int, int, int], ...] = ()
    official_ids: tuple[int, ...] = ()

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def to_json(self) -> str:
        """dataset.json of a workdir."""
        facts = dataclasses.asdict(self)
        del facts["layout"]
        facts["label_map"] = {str(raw): index for raw, index in self.label_map.items()}
        return json.dumps(facts, indent=1)


def check(config: Any) -> None:
    """Raise DataError if training on `config` would go wrong for its data; see checks.check."""
    from jaxseg.data import checks

    checks.check(config)


# --- The table --------------------------------------------------------------------------------------------------------

_TRAINING = (("train", ("training",)), ("val", ("validation",)))
_TILES = Layout("img_dir/{split}/{stem}.png", (("ann_dir/{split}/{stem}.png", "from_one"),))


def _voc(
    labels: tuple[str, ...], lists: str, label_map: str = "identity", train: tuple[str, ...] = ("train",)
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


FOLDER = Layout("images/{split}/{stem}.*", tuple((f"labels/{{split}}/{{stem}}{suffix}", "identity") for suffix in LABEL_SUFFIXES), nested=True)
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


def first_ids(ids: Mapping[int, int], num_classes: int) -> tuple[int, ...]:
    """The raw id of each class in a label map; of several the first."""
    return tuple(next(raw for raw, index in ids.items() if index == wanted) for wanted in range(num_classes))


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
    if source == "tfds" and name != "shapes":
        from jaxseg.data import records

        return records.get_spec(name, root)
    if name == "shapes":
        from jaxseg.data import shapes

        return DatasetSpec(name, shapes.CLASSES, shapes.PALETTE, label_map("identity", len(shapes.CLASSES)))
    if name == "folder":
        return _folder_spec(root)
    if name not in SPECS:
        near = difflib.get_close_matches(str(name), list_datasets(), 1, 0.4)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise DataError(f"Unknown data set '{name}'.{hint} Known: {', '.join(list_datasets())}.")
    key, *layouts = SPECS[name]
    layout = next((layout for layout in layouts if root and layout.lies_in(Path(root))), layouts[0])
    classes, palette = _facts()["classes"][key], _facts()["palettes"][key]
    ids = label_map(layout.labels[-1][1], len(classes))
    official = () if name in NUMBERED else first_ids(ids, len(classes))
    return DatasetSpec(name, tuple(classes), tuple(tuple(color) for color in palette), ids, layout, official_ids=official)


def trained_spec(data: Any) -> DatasetSpec:
    """The spec of config.dataset, in the run's order and with the statistics that the config has: what dataset.json keeps."""
    from jaxseg.data import class_order

    spec = class_order.config_spec(data)
    return dataclasses.replace(spec, image_mean=tuple(data.image_mean), image_std=tuple(data.image_std))


def _folder_spec(root: str | Path) -> DatasetSpec:
    if not root:
        raise DataError(
            "The data set 'folder' needs its folder: --config.dataset.root=DIR with images/, labels/ and classes.txt."
        )
    file = Path(root) / "classes.txt"
    if not Path(root).is_dir():
        raise DataError(f"{root}: no such folder; config.dataset.root must hold images/, labels/ and classes.txt.")
    if not file.is_file():
        prepared = next(Path(root).glob("**/dataset_info.json"), None)
        hint = f" ({prepared.parent} is a prepared data set: --config.dataset.source=tfds reads it)" if prepared else ""
        raise DataError(f"{file}: no such file; write the class names into it, one a line, the first is label value 0{hint}.")
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 text ({error}); save it as UTF-8, one class name a line.") from None
    named = [(number, *_class_line(line)) for number, line in enumerate(lines, 1) if line and not line.startswith("#")]
    _check_lines(file, named)
    ignored = [bool(color) and name.lower() in IGNORED_NAMES for _, name, color in named]
    classes = [(name, color) for (_, name, color), skip in zip(named, ignored, strict=True) if not skip]
    if len(classes) == 1:
        raise DataError(f"{file}: holds one class; softmax needs two or more: list the background as class 0.")
    # A label's number is that of the line, so lines of ignored colours count: they become 255.
    order = iter(range(len(classes)))
    ids = {number: IGNORE if skip else next(order) for number, skip in enumerate(ignored)}
    ids = _read_label_map(Path(root) / "label_map.txt", [name for name, _ in classes]) or ids
    declared = tuple(color for _, color in classes)
    palette = tuple(color or default for color, default in zip(declared, default_palette(len(classes)), strict=True))
    return DatasetSpec(
        "folder", tuple(name for name, _ in classes), palette, ids, FOLDER, official_ids=first_ids(ids, len(classes)),
        colors=declared if all(declared) else (),
        ignored_colors=tuple(color for (_, _, color), skip in zip(named, ignored, strict=True) if skip),
    )  # fmt: skip


def _check_lines(file: Path, named: list[tuple[int, str, tuple[int, ...]]]) -> None:
    """DataError unless these (line number, name, colour) of classes.txt can be a data set's classes."""
    names = [name for _, name, color in named if not (color and name.lower() in IGNORED_NAMES)]
    if not names:
        raise DataError(
            f"{file}: holds no class; write the class names into it, one a line, the first is label value 0."
        )
    if len(named) > MAX_CLASSES:
        raise DataError(f"{file}: {len(named)} classes; at most {MAX_CLASSES} are possible.")
    owners: dict[tuple[int, ...], str] = {}
    for number, name, color in named:
        if names.count(name) > 1:
            raise DataError(
                f"{file}, line {number}: class '{name}' is listed {names.count(name)} times; names must differ."
            )
        if color and max(color) > 255:
            raise DataError(
                f"{file}, line {number}: colour {color} of '{name}' is not within 0..255; write '{name} 128 64 0'."
            )
        if color in owners:
            raise DataError(
                f"{file}, line {number}: colour {color} of '{name}' is that of '{owners[color]}' too; "
                "colours must differ."
            )
        if color:
            owners[color] = name


def _read_label_map(file: Path, classes: list[str]) -> dict[int, int]:
    """The map of lines `<raw id, or first-last> <class or ignore>`; {} if there is no such file."""
    if not file.is_file():
        return {}
    ids: dict[int, int] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), 1):
        words = line.split("#")[0].split(None, 1)
        if not words:
            continue
        name = words[1] if len(words) > 1 else ""
        first, _, last = words[0].partition("-")
        if not (first.isdecimal() and (last or first).isdecimal() and int(first) <= int(last or first) <= 65535):
            raise DataError(f"{file}, line {number}: '{line.strip()}' does not begin with a label value; write `7 road` or `0-6 ignore`.")
        name = name.strip()
        if name not in classes and name.lower() not in IGNORED_NAMES:
            near = (difflib.get_close_matches(name, classes, 1, 0.4) or classes)[0]
            raise DataError(f"{file}, line {number}: '{name}' is no class of classes.txt; write one of them, '{near}' for instance, or 'ignore'.")
        for value in range(int(first), int(last or first) + 1):
            if value in ids:
                raise DataError(f"{file}, line {number}: label value {value} has a line already; keep one of them.")
            ids[value] = classes.index(name) if name in classes else IGNORE
    if missing := [name for index, name in enumerate(classes) if index not in ids.values()]:
        raise DataError(f"{file}: no label value stands for class '{missing[0]}'; add its line, or take it out of classes.txt.")
    return ids


def _class_line(line: str) -> tuple[str, tuple[int, ...]]:
    """'road 128 64 128' -> ('road', (128, 64, 128)); without three numbers at the end the line is the name."""
    words = line.replace(",", " ").split() if line[-1].isdecimal() else line.split()
    if len(words) > 3 and all(word.isdecimal() for word in words[-3:]):
        return " ".join(words[:-3]), tuple(int(word) for word in words[-3:])
    return line, ()


def default_palette(count: int) -> list[tuple[int, int, int]]:
    """Distinct colours: hues a golden section apart, at three levels of saturation and brightness."""
    levels = ((0.75, 0.95), (0.95, 0.65), (0.45, 0.85))
    colors = (colorsys.hsv_to_rgb(i * 0.618034 % 1, *levels[i % 3]) for i in range(count))
    return [tuple(round(255 * value) for value in color) for color in colors]
