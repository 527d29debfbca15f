"""Converters for data sets whose official release needs preprocessing.

These releases have .mat or colour labels, images to cut into tiles, or lists to merge. Files are
found by the end of their path anywhere below the root, in upper or lower case, however deep an
archive unpacks; of several copies the first by name is taken. Splits and tiles
are those of MMSegmentation's published models.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from jaxseg.constants import IGNORE
from jaxseg.data.catalog import get_spec
from jaxseg.data.decode import check_sizes, decode_image, inspect_image
from jaxseg.data.prepare.raw_files import (
    Finder,
    Strings,
    find_camvid,
    find_coco_stuff10k,
    find_fixed,
    find_isaid,
    find_pascal_context,
    find_voc12aug,
    index_files,
    require_file,
)
from jaxseg.data.prepare.raw_labels import (
    BLACK,
    CAMVID_COLORS,
    Reader,
    coco_ids,
    color_reader,
    context_ids,
    mat_reader,
    read_bytes,
    read_mask,
)
from jaxseg.errors import DataError
from jaxseg.files import expand

# Stem; image as a file, the bytes of one, or RGB uint8 [H, W, 3]; label as class ids uint8 [H, W],
# 255 = ignore.
Item = tuple[str, Path | bytes | np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class ConversionTask:
    """One image to convert.

    Attributes:
        name: Stem of the image.
        load: Yields the items of the image: one, or one for each tile. It may raise DataError.
        files: The files that `load` reads.
    """

    name: str
    load: Callable[[], Iterator[Item]]
    files: tuple[Path, ...] = ()


@dataclasses.dataclass(frozen=True)
class RawDataset:
    """How the official release of a data set is read.

    Attributes:
        origin: What to unpack below the root, for messages.
        find: Called with (tree, root, split), yields the files of the split.
        read: Reads a label file as class ids.
        tile: Side and stride of tiles in pixels, and the pattern of their names; None for whole
            images.
        splits: The splits that it has.
    """

    origin: str
    find: Finder
    read: Reader
    tile: tuple[int, int, str] | None = None
    splits: Strings = ("train", "val")


def list_tasks(name: str, root: str | Path, split: str) -> list[ConversionTask]:
    """List the images of a split.

    Args:
        name: The data set, one of NAMES.
        root: The folder that its archives were unpacked into.
        split: "train" or "val"; "test" of camvid.

    Raises:
        DataError: The data set, the split or a file does not exist.
    """
    if name not in DATASETS:
        raise DataError(
            f"'{name}' is not among the data sets that are converted from their official download",
            field="name",
            hint=f"these are {', '.join(NAMES)}",
        )
    raw = DATASETS[name]
    unpack = f"unpack there {raw.origin}"
    if not str(root):
        raise DataError(
            f"the data set '{name}' needs the folder of its download", field="root", hint=unpack
        )
    root = expand(root).absolute()
    if split not in raw.splits:
        raise DataError(
            f"the data set '{name}' has no split '{split}'",
            field="splits",
            hint=f"it has {', '.join(raw.splits)}",
        )
    if not root.is_dir():
        raise DataError("no such folder", file=root, field="root", hint=f"make it, and {unpack}")
    tree = index_files(root)
    try:
        found = [
            (stem, require_file(tree, *image), require_file(tree, *label))
            for stem, image, label in raw.find(tree, root, split)
        ]
    except FileNotFoundError as error:
        problem = f"does not contain {error}, which '{name}' needs"
        raise DataError(problem, file=root, field="root", hint=unpack) from None
    return [
        ConversionTask(stem, functools.partial(_load, name, stem, image, label), (image, label))
        for stem, image, label in found
    ]


def _load(name: str, stem: str, image_file: Path, label_file: Path) -> Iterator[Item]:
    """Yield the items of an image: itself, or its tiles."""
    raw, spec = DATASETS[name], get_spec(name)
    label = raw.read(label_file, spec)
    if raw.tile is None and image_file.suffix.lower() in (".jpg", ".png"):
        check_sizes(inspect_image(image_file, image_file).size, label.shape, image_file, label_file)
        yield stem, image_file, label
        return
    image = decode_image(read_bytes(image_file), image_file)
    check_sizes(image.shape[:2], label.shape, image_file, label_file)
    if raw.tile is None:
        yield stem, image, label
    else:
        yield from _tiles(stem, image, label, *raw.tile)


# --- Tiles ----------------------------------------------------------------------------------------


def tile_starts(length: int, side: int, stride: int) -> list[int]:
    """Return where tiles begin along one axis of an image.

    They begin every `stride` pixels; the last ones are moved back to end within the image.

    Args:
        length: Pixels along the axis.
        side: Side of a tile in pixels.
        stride: Distance between tiles in pixels.
    """
    return sorted({max(0, min(start, length - side)) for start in range(0, length, stride)})


def _tiles(
    stem: str, image: np.ndarray, label: np.ndarray, side: int, stride: int, name: str
) -> Iterator[Item]:
    """Yield tiles [side, side]; small images are padded at right and bottom: 0, in labels 255."""
    pad = [(0, max(0, side - size)) for size in label.shape]
    image = np.pad(image, [*pad, (0, 0)])
    label = np.pad(label, pad, constant_values=IGNORE)
    for y in tile_starts(label.shape[0], side, stride):
        for x in tile_starts(label.shape[1], side, stride):
            window = np.s_[y : y + side, x : x + side]
            tile = name.format(stem=stem, y=y, x=x, bottom=y + side, right=x + side)
            yield tile, np.ascontiguousarray(image[window]), np.ascontiguousarray(label[window])


# --- The table ------------------------------------------------------------------------------------

POTSDAM: tuple[Strings, Strings] = (  # training and validation split
    (
        *(f"{row}_{column}" for row in (2, 3, 4, 5) for column in (10, 11, 12)),
        *(f"6_{column}" for column in (10, 11, 12, 7, 8, 9)),
        *(f"7_{column}" for column in (10, 11, 12, 7, 8, 9)),
    ),
    (
        *(f"{row}_{column}" for row in (2, 3) for column in (13, 14)),
        *(f"4_{column}" for column in (13, 14, 15)),
        *(f"5_{column}" for column in (13, 14, 15)),
        *(f"6_{column}" for column in (13, 14, 15)),
        "7_13",
    ),
)
VAIHINGEN: tuple[Strings, Strings] = (
    tuple(f"area{n}" for n in (1, 3, 5, 7, 11, 13, 15, 17, 21, 23, 26, 28, 30, 32, 34, 37)),
    tuple(f"area{n}" for n in (2, 4, 6, 8, 10, 12, 14, 16, 20, 22, 24, 27, 29, 31, 33, 35, 38)),
)
STARE: Strings = tuple(
    f"im{n:04}"
    for n in (1, 2, 3, 4, 5, 44, 77, 81, 82, 139, 162, 163, 235, 236, 239, 240, 255, 291, 319, 324)
)


def _numbers(pattern: str, first: int, last: int, sides: Strings = ("",)) -> Strings:
    """Return a pattern filled with the numbers `first` to `last`, each with every side."""
    return tuple(pattern.format(n, side) for n in range(first, last + 1) for side in sides)


_CONTEXT = RawDataset(
    origin=(
        "VOCtrainval of PASCAL VOC 2010 and the PASCAL Context annotations (trainval/*.mat), of "
        "Stanford"
    ),
    find=find_pascal_context,
    read=mat_reader("LabelMap", context_ids),
)
# MMSegmentation names a stride of 256 for these tiles, but 512 is what its tiles, and its published
# numbers, come from.
_ISPRS_TILE = (512, 512, "{stem}_{x}_{y}_{right}_{bottom}")
DATASETS: dict[str, RawDataset] = {
    "voc12aug": RawDataset(
        origin=(
            "VOCtrainval of PASCAL VOC 2012 and Berkeley's Semantic Boundaries "
            "(benchmark_RELEASE/dataset), both below this one folder"
        ),
        find=find_voc12aug,
        read=mat_reader("GTcls.Segmentation", lambda spec: spec.label_map),
    ),
    "pascal_context": _CONTEXT,
    "pascal_context_59": _CONTEXT,
    "coco_stuff10k": RawDataset(
        origin="COCO-Stuff 10K v1.1, of Edinburgh (images/, annotations/, imageLists/)",
        find=find_coco_stuff10k,
        read=mat_reader("S", coco_ids),
    ),
    # Label 4_12 of some copies of 5_Labels_all is a picture instead of a label;
    # 5_Labels_for_participants has the right one.
    "potsdam": RawDataset(
        origin=(
            "2_Ortho_RGB and 5_Labels_all_noBoundary (or 5_Labels_all) of the ISPRS 2D Semantic "
            "Labeling benchmark, Potsdam"
        ),
        find=find_fixed(
            images=("top_potsdam_{stem}_RGB.tif",),
            labels=(
                "top_potsdam_{stem}_label_noBoundary.tif",
                "top_potsdam_{stem}_label.tif",
            ),
            train=POTSDAM[0],
            val=POTSDAM[1],
        ),
        read=color_reader(BLACK),
        tile=_ISPRS_TILE,
    ),
    "vaihingen": RawDataset(
        origin=(
            "ISPRS_semantic_labeling_Vaihingen and its ..._ground_truth_eroded_COMPLETE (or "
            "..._COMPLETE) of the ISPRS benchmark"
        ),
        find=find_fixed(
            images=("top/top_mosaic_09cm_{stem}.tif",),
            labels=(
                "top_mosaic_09cm_{stem}_noBoundary.tif",
                "!top/top_mosaic_09cm_{stem}.tif",
            ),
            train=VAIHINGEN[0],
            val=VAIHINGEN[1],
        ),
        read=color_reader(BLACK),
        tile=_ISPRS_TILE,
    ),
    "isaid": RawDataset(
        origin=(
            "the images of DOTA-v1.0 and iSAID's Semantic_masks, of Wuhan, into folders train/ and "
            "val/"
        ),
        find=find_isaid,
        read=color_reader(),
        tile=(896, 512, "{stem}_{y}_{bottom}_{x}_{right}"),
    ),
    "camvid": RawDataset(
        origin=(
            "701_StillsRaw_full and LabeledApproved_full of CamVid, of Cambridge (train.txt and "
            "val.txt too for a split of your own)"
        ),
        find=find_camvid,
        read=color_reader(BLACK, groups=CAMVID_COLORS),
        splits=("train", "val", "test"),
    ),
    "drive": RawDataset(
        origin="training/ and test/ of DRIVE, of Utrecht, with 1st_manual in both",
        find=find_fixed(
            images=("{folder}/images/{stem}_{folder}.tif",),
            labels=("{folder}/1st_manual/{stem}_manual1.gif",),
            train=_numbers("{:02}", 21, 40),
            val=_numbers("{:02}", 1, 20),
            folders=("training", "test"),
        ),
        read=read_mask,
    ),
    "chase_db1": RawDataset(
        origin="CHASEDB1, of Kingston University",
        find=find_fixed(
            images=("{stem}.jpg",),
            labels=("{stem}_1stHO.png",),
            train=_numbers("Image_{:02}{}", 1, 10, ("L", "R")),
            val=_numbers("Image_{:02}{}", 11, 14, ("L", "R")),
        ),
        read=read_mask,
    ),
    "hrf": RawDataset(
        origin=(
            "the images and manual segmentations of the High-Resolution Fundus database, of "
            "Erlangen"
        ),
        find=find_fixed(
            images=("{stem}.jpg",),
            labels=("{stem}.tif",),
            train=_numbers("{:02}_{}", 1, 5, ("dr", "g", "h")),
            val=_numbers("{:02}_{}", 6, 15, ("dr", "g", "h")),
        ),
        read=read_mask,
    ),
    "stare": RawDataset(
        origin="stare-images and labels-ah of STARE, of Clemson",
        find=find_fixed(
            images=("{stem}.ppm.gz", "{stem}.ppm"),
            labels=("{stem}.ah.ppm.gz", "{stem}.ah.ppm"),
            train=STARE[:10],
            val=STARE[10:],
        ),
        read=read_mask,
    ),
}
NAMES = tuple(DATASETS)
