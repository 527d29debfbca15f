"""Built-in data sets: class names, palettes, label maps and the layouts that their files come in.

Class names, palettes and long label maps are stored in classes.json.
"""

import dataclasses
import functools
import json
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

from jaxseg.constants import IGNORE
from jaxseg.data.spec import DatasetSpec, Layout
from jaxseg.errors import DataError
from jaxseg.registry import unknown_name

# Data sets whose official downloads must be converted (scripts/prepare_data.py), as they cannot be
# read in place.
CONVERTED = (
    "voc12aug",
    "pascal_context",
    "pascal_context_59",
    "coco_stuff10k",
    "potsdam",
    "vaihingen",
    "isaid",
    "camvid",
    "drive",
    "chase_db1",
    "hrf",
    "stare",
)
SUBMITS_CLASS_INDEX = ("loveda",)  # the benchmark wants class indices, not the values in its labels


@dataclasses.dataclass(frozen=True)
class Builtin:
    """A built-in data set.

    Attributes:
        key: Key of its classes and palette in classes.json.
        layouts: The layouts that it comes in; the first is the default.
    """

    key: str
    layouts: tuple[Layout, ...]


# --- The table ---

_TRAINING = (("train", ("training",)), ("val", ("validation",)))
_TILES = Layout("img_dir/{split}/{stem}.png", (("ann_dir/{split}/{stem}.png", "from_one"),))


def nested_in(layout: Layout, *folders: str) -> tuple[Layout, ...]:
    """Return the layout, and a copy of it for each of `folders` that the root may hold it in."""
    moved = (
        dataclasses.replace(
            layout,
            images=f"{folder}/{layout.images}",
            labels=tuple((f"{folder}/{pattern}", name) for pattern, name in layout.labels),
            listing=f"{folder}/{layout.listing}" if layout.listing else "",
        )
        for folder in folders
    )
    return layout, *moved


def _voc(
    year: int,
    labels: tuple[str, ...],
    lists: str,
    label_map: str = "identity",
    train: tuple[str, ...] = ("train",),
) -> tuple[Layout, ...]:
    """Return the layouts of a data set on the images of PASCAL VOC."""
    layout = Layout(
        "JPEGImages/{stem}.jpg",
        tuple((f"{folder}/{{stem}}.png", label_map) for folder in labels),
        listing=f"ImageSets/{lists}/{{split}}.txt",
        splits=(("train", train),),
    )
    return nested_in(layout, f"VOC{year}", f"VOCdevkit/VOC{year}")


def _vessels(label: str) -> tuple[Layout, ...]:
    """Return the layout of a data set of retinal vessels."""
    labels = ((f"annotations/{{split}}/{label}", "identity"),)
    return (Layout("images/{split}/{stem}.png", labels, splits=_TRAINING),)


# Label maps: see `named_label_map`.
BUILTIN: dict[str, Builtin] = {
    "cityscapes": Builtin(
        "cityscapes",
        (
            Layout(
                "leftImg8bit/{split}/{stem}_leftImg8bit.png",
                (
                    ("gtFine/{split}/{stem}_gtFine_labelTrainIds.png", "identity"),
                    ("gtFine/{split}/{stem}_gtFine_labelIds.png", "cityscapes_ids"),
                ),
                nested=True,
            ),
        ),
    ),
    "dark_zurich": Builtin(
        "cityscapes",
        nested_in(
            Layout(
                "rgb_anon/{split}/night/{stem}_rgb_anon.png",
                (("gt/{split}/night/{stem}_gt_labelTrainIds.png", "identity"),),
                nested=True,
            ),
            "Dark_Zurich_val_anon",
        ),
    ),
    "night_driving": Builtin(
        "cityscapes",
        nested_in(
            Layout(
                "leftImg8bit/{split}/night/{stem}_leftImg8bit.png",
                (
                    (
                        "gtCoarse_daytime_trainvaltest/{split}/night/{stem}_gtCoarse_labelTrainIds.png",
                        "identity",
                    ),
                ),
                splits=(("val", ("test",)),),
            ),
            "NighttimeDrivingTest",
        ),
    ),
    "ade20k": Builtin(
        "ade20k",
        nested_in(
            Layout(
                "images/{split}/{stem}.jpg",
                (("annotations/{split}/{stem}.png", "from_one"),),
                splits=_TRAINING,
            ),
            "ADEChallengeData2016",
        ),
    ),
    "voc12": Builtin("voc12", _voc(2012, ("SegmentationClass",), "Segmentation")),
    "voc12aug": Builtin(
        "voc12",
        _voc(
            2012,
            ("SegmentationClass", "SegmentationClassAug"),
            "Segmentation",
            train=("train", "aug"),
        ),
    ),
    "pascal_context": Builtin(
        "pascal_context", _voc(2010, ("SegmentationClassContext",), "SegmentationContext")
    ),
    "pascal_context_59": Builtin(
        "pascal_context_59",
        _voc(2010, ("SegmentationClassContext",), "SegmentationContext", "from_one"),
    ),
    "coco_stuff10k": Builtin(
        "coco_stuff",
        (
            Layout(
                "images/{split}2014/{stem}.jpg",
                (("annotations/{split}2014/{stem}_labelTrainIds.png", "from_one"),),
                splits=(("val", ("test",)),),
            ),
        ),
    ),
    "coco_stuff164k": Builtin(
        "coco_stuff",
        (
            Layout(
                "images/{split}2017/{stem}.jpg",
                (
                    ("annotations/{split}2017/{stem}_labelTrainIds.png", "identity"),
                    ("annotations/{split}2017/{stem}.png", "coco_stuff_ids"),
                ),
            ),
            Layout(
                "{split}2017/{stem}.jpg",
                (("stuffthingmaps/{split}2017/{stem}.png", "coco_stuff_ids"),),
            ),
        ),
    ),
    "loveda": Builtin(
        "loveda",
        (
            _TILES,
            Layout(
                "{split}/images_png/{stem}.png",
                (("{split}/masks_png/{stem}.png", "from_one"),),
                splits=(
                    ("train", ("Train/Rural", "Train/Urban")),
                    ("val", ("Val/Rural", "Val/Urban")),
                ),
            ),
        ),
    ),
    "potsdam": Builtin("potsdam", (_TILES,)),
    "vaihingen": Builtin("potsdam", (_TILES,)),
    "isaid": Builtin(
        "isaid",
        (
            Layout(
                "img_dir/{split}/{stem}.png",
                (("ann_dir/{split}/{stem}_instance_color_RGB.png", "identity"),),
            ),
        ),
    ),
    "mapillary_v1_65": Builtin(
        "mapillary_v1_65",
        (
            Layout(
                "{split}/images/{stem}.jpg",
                (
                    ("{split}/v1.2/labels/{stem}.png", "last_ignored"),  # the archive of v2.0
                    ("{split}/labels/{stem}.png", "last_ignored"),  # of v1.x
                ),
                splits=_TRAINING,
            ),
        ),
    ),
    "camvid": Builtin(
        "camvid",
        nested_in(
            Layout("{split}/{stem}.png", (("{split}annot/{stem}.png", "last_ignored"),)), "CamVid"
        ),
    ),
    "drive": Builtin("vessels", _vessels("{stem}_manual1.png")),
    "chase_db1": Builtin("vessels", _vessels("{stem}_1stHO.png")),
    "hrf": Builtin("vessels", _vessels("{stem}.png")),
    "stare": Builtin("vessels", _vessels("{stem}.ah.png")),
}


# --- Specs ---


@functools.cache
def _stored() -> dict[str, Any]:
    """Return the content of classes.json."""
    return json.loads(resources.files("jaxseg.data").joinpath("classes.json").read_text())


def list_datasets() -> list[str]:
    """Return every name that `catalog.get_spec` knows."""
    return ["shapes", "folder", *BUILTIN]


def named_label_map(name: str, num_classes: int) -> dict[int, int]:
    """Return a label map by its name: {raw label value: class index or 255}.

    Args:
        name: "identity"; "from_one", where 0 is ignored and the classes start at 1; "last_ignored",
            where one more value than there are classes is ignored; or a key of classes.json.
        num_classes: Number of classes.
    """
    identity = {i: i for i in range(num_classes)}
    if name == "identity":
        return identity
    if name == "from_one":
        return {0: IGNORE} | {i + 1: i for i in identity}
    if name == "last_ignored":
        return identity | {num_classes: IGNORE}
    return {int(raw): index for raw, index in _stored()["label_maps"][name].items()}


def raw_id_per_class(ids: Iterable[tuple[int, int]], num_classes: int) -> tuple[int, ...]:
    """Return the first raw label value of each class.

    Args:
        ids: Pairs (raw value, class index or 255) that name every class.
        num_classes: Number of classes K.
    """
    first: dict[int, int] = {}
    for raw, index in ids:
        first.setdefault(index, raw)
    return tuple(first[index] for index in range(num_classes))


def builtin_spec(name: str, root: str | Path = "") -> DatasetSpec:
    """Return the spec of a built-in data set.

    Args:
        name: One of `list_datasets()` other than `folder` and `shapes`.
        root: Folder of the data set: the layout is the one whose files are there, else the default.

    Raises:
        DataError: There is no built-in data set of this name.
    """
    if name not in BUILTIN:
        raise DataError(unknown_name(list_datasets(), name, "data set").problem)
    entry = BUILTIN[name]
    default, *_ = entry.layouts
    layout = next((each for each in entry.layouts if root and each.exists_in(Path(root))), default)
    official_map = layout.labels[-1][1]
    classes = tuple(_stored()["classes"][entry.key])
    label_map = named_label_map(official_map, len(classes))
    submission_ids: tuple[int, ...] = ()
    if name not in SUBMITS_CLASS_INDEX:
        submission_ids = raw_id_per_class(label_map.items(), len(classes))
    return DatasetSpec(
        name,
        classes,
        tuple(tuple(color) for color in _stored()["palettes"][entry.key]),
        label_map,
        layout,
        submission_ids=submission_ids,
        explicit_map=official_map != "identity",
    )
