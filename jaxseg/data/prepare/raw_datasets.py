"""Converters for data sets whose official release cannot be read in place: .mat labels, colour labels, tiles, merged lists.

Files are found by the end of their path anywhere below the root, in upper or lower case, however
deep an archive unpacks; of several copies the first by name is taken. Splits and tiles are those of
MMSegmentation's published models.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from jaxseg.constants import IGNORE
from jaxseg.data.catalog import get_spec
from jaxseg.data.decode import check_sizes, decode_image, inspect_image
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
from jaxseg.data.sources.pairs import read_names
from jaxseg.errors import DataError
from jaxseg.files import expand, walk

Tree = Mapping[str, list[Path]]  # file name in lower case -> all files of this name
Strings = tuple[str, ...]
# Stem, and ends of the image's and the label's path in order of preference.
FilePair = tuple[str, Strings, Strings]
Finder = Callable[[Tree, Path, str], Iterator[FilePair]]
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
    tree = _index_files(root)
    try:
        found = [
            (stem, _require_file(tree, *image), _require_file(tree, *label))
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
    """The items of an image: itself, or its tiles."""
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
    """Return where the tiles of a line of pixels begin: every `stride`, the last ones moved back to end within it."""
    return sorted({max(0, min(start, length - side)) for start in range(0, length, stride)})


def _tiles(
    stem: str, image: np.ndarray, label: np.ndarray, side: int, stride: int, name: str
) -> Iterator[Item]:
    """Tiles [side, side]; smaller ones are padded at the right and bottom, the image with 0 and the label with 255."""
    pad = [(0, max(0, side - size)) for size in label.shape]
    image = np.pad(image, [*pad, (0, 0)])
    label = np.pad(label, pad, constant_values=IGNORE)
    for y in tile_starts(label.shape[0], side, stride):
        for x in tile_starts(label.shape[1], side, stride):
            window = np.s_[y : y + side, x : x + side]
            tile = name.format(stem=stem, y=y, x=x, bottom=y + side, right=x + side)
            yield tile, np.ascontiguousarray(image[window]), np.ascontiguousarray(label[window])


# --- Finding files --------------------------------------------------------------------------------


def _index_files(root: Path) -> Tree:
    """All files below a folder by their names."""
    tree: dict[str, list[Path]] = {}
    for file in walk(root).files:
        tree.setdefault(file.name.lower(), []).append(file)
    return tree


def _find_file(tree: Tree, *ends: str) -> Path | None:
    """The first file whose path has one of these ends; '!folder/name' is a file of this name in any other folder."""
    for end in map(str.lower, ends):
        for file in tree.get(end.rsplit("/")[-1], ()):
            if _ends_with(file, end):
                return file
    return None


def _ends_with(file: Path, end: str) -> bool:
    if end.startswith("!"):
        return file.parent.name.lower() != end[1:].split("/")[0]
    return file.as_posix().lower().endswith(f"/{end}")


def _require_file(tree: Tree, *ends: str) -> Path:
    """As `_find_file`, or raise FileNotFoundError with the names that were looked for."""
    file = _find_file(tree, *ends)
    if file is None:
        names = (end.rsplit("/")[-1] if end.startswith("!") else end for end in ends)
        raise FileNotFoundError(" or ".join(names))
    return file


def _stems(listing: Path) -> list[str]:
    """The names in a list of files: the first word of each line, without folder and suffix."""
    return [Path(line.split()[0]).stem for line in read_names(listing)]


def _fixed(
    images: Strings,
    labels: Strings,
    train: Strings,
    val: Strings,
    folders: tuple[str, str] = ("", ""),
) -> Finder:
    """Find a data set with known stems.

    Args:
        images: Patterns of the image's path with {stem} and {folder}, in order of preference.
        labels: Patterns of the label's path; the first that matches any file is used for all.
        train: Stems of the training split.
        val: Stems of the validation split.
        folders: The {folder} of train and val.
    """

    def find(tree: Tree, root: Path, split: str) -> Iterator[FilePair]:
        stems, folder = (train, folders[0]) if split == "train" else (val, folders[1])
        names = [[label.format(stem=stem, folder=folder) for stem in stems] for label in labels]
        chosen = names[0]
        for ends in names:
            if any(_find_file(tree, end) for end in ends):
                chosen = ends
                break
        for stem, label in zip(stems, chosen):
            yield stem, tuple(image.format(stem=stem, folder=folder) for image in images), (label,)

    return find


def _voc12aug(tree: Tree, root: Path, split: str) -> Iterator[FilePair]:
    """VOC's own labels where it has them, Berkeley's for further images of train."""
    lists = {
        name: _require_file(
            tree, f"VOC2012/ImageSets/Segmentation/{name}.txt", f"Segmentation/{name}.txt"
        )
        for name in ("train", "val")
    }
    voc = lists["train"].parents[2].name
    stems = {name: _stems(file) for name, file in lists.items()}
    for stem in stems[split]:
        yield stem, (f"{voc}/JPEGImages/{stem}.jpg",), (f"{voc}/SegmentationClass/{stem}.png",)
    if split == "train":
        berkeley = {
            stem
            for name in ("train", "val")
            for stem in _stems(_require_file(tree, f"dataset/{name}.txt"))
        }
        for stem in sorted(berkeley.difference(*stems.values())):
            yield stem, (f"{voc}/JPEGImages/{stem}.jpg",), (f"cls/{stem}.mat",)


def _pascal_context(tree: Tree, root: Path, split: str) -> Iterator[FilePair]:
    listing = _require_file(
        tree, f"VOC2010/ImageSets/Main/{split}.txt", f"ImageSets/Main/{split}.txt"
    )
    for stem in _stems(listing):
        yield stem, (f"{listing.parents[2].name}/JPEGImages/{stem}.jpg",), (f"trainval/{stem}.mat",)


def _coco_stuff10k(tree: Tree, root: Path, split: str) -> Iterator[FilePair]:
    listing = "train" if split == "train" else "test"
    for stem in _stems(_require_file(tree, f"imageLists/{listing}.txt")):
        yield stem, (f"{stem}.jpg",), (f"annotations/{stem}.mat",)


def _isaid(tree: Tree, root: Path, split: str) -> Iterator[FilePair]:
    ending, found = "_instance_color_RGB.png", set()
    for file in (file for files in tree.values() for file in files):
        stem = file.name.removesuffix(ending).removesuffix(".png")
        if split in file.relative_to(root).parts[:-1] and stem[:1] == "P" and stem[1:].isdigit():
            found.add(stem)
    if not found:
        raise FileNotFoundError(f"{split}/.../P0000.png")
    for stem in sorted(found):
        yield stem, (f"{stem}.png",), (stem + ending,)


def _camvid(tree: Tree, root: Path, split: str) -> Iterator[FilePair]:
    """The split of a list {split}.txt if there is one, else SegNet's, by recording and time."""
    listing = _find_file(tree, f"{split}.txt")
    if listing:
        stems = _stems(listing)
    else:
        labels = [files[0].name[:-6] for name, files in tree.items() if name.endswith("_l.png")]
        stems = sorted(stem for stem in labels if _segnet_split(stem) == split)
    if not stems:
        raise FileNotFoundError("LabeledApproved_full/..._L.png")
    for stem in stems:
        yield stem, (f"701_StillsRaw_full/{stem}.png", f"{stem}.png"), (f"{stem}_L.png",)


def _segnet_split(stem: str) -> str:
    """The split of SegNet (arXiv:1511.00561), 367 + 101 + 233 images, of a frame such as '0016E5_07959'."""
    recording, _, frame = stem.partition("_")
    time = int("".join(filter(str.isdigit, frame)) or 0)
    if recording == "Seq05VD" or (recording == "0001TP" and time > 8520):
        return "test"
    return "val" if recording == "0016E5" and 7959 <= time <= 8159 else "train"


# --- The table ------------------------------------------------------------------------------------

POTSDAM = (
    tuple(
        [
            "2_10",
            "2_11",
            "2_12",
            "3_10",
            "3_11",
            "3_12",
            "4_10",
            "4_11",
            "4_12",
            "5_10",
            "5_11",
            "5_12",
            "6_10",
            "6_11",
            "6_12",
            "6_7",
            "6_8",
            "6_9",
            "7_10",
            "7_11",
            "7_12",
            "7_7",
            "7_8",
            "7_9",
        ]
    ),
    tuple(
        [
            "2_13",
            "2_14",
            "3_13",
            "3_14",
            "4_13",
            "4_14",
            "4_15",
            "5_13",
            "5_14",
            "5_15",
            "6_13",
            "6_14",
            "6_15",
            "7_13",
        ]
    ),
)
VAIHINGEN = (
    tuple(f"area{n}" for n in (1, 3, 5, 7, 11, 13, 15, 17, 21, 23, 26, 28, 30, 32, 34, 37)),
    tuple(f"area{n}" for n in (2, 4, 6, 8, 10, 12, 14, 16, 20, 22, 24, 27, 29, 31, 33, 35, 38)),
)
STARE = tuple(
    f"im{n:04}"
    for n in (1, 2, 3, 4, 5, 44, 77, 81, 82, 139, 162, 163, 235, 236, 239, 240, 255, 291, 319, 324)
)


def _numbers(pattern: str, first: int, last: int, sides: Strings = ("",)) -> Strings:
    return tuple(pattern.format(n, side) for n in range(first, last + 1) for side in sides)


_CONTEXT = RawDataset(
    "VOCtrainval of PASCAL VOC 2010 and the PASCAL Context annotations (trainval/*.mat), of Stanford",
    _pascal_context, mat_reader("LabelMap", context_ids),
)  # fmt: skip
_ISPRS = "{stem}_{x}_{y}_{right}_{bottom}"
DATASETS: dict[str, RawDataset] = {
    "voc12aug": RawDataset(
        "VOCtrainval of PASCAL VOC 2012 and Berkeley's Semantic Boundaries (benchmark_RELEASE/dataset), both below this one folder",
        _voc12aug, mat_reader("GTcls.Segmentation", lambda spec: spec.label_map)),
    "pascal_context": _CONTEXT,
    "pascal_context_59": _CONTEXT,
    "coco_stuff10k": RawDataset(
        "COCO-Stuff 10K v1.1, of Edinburgh (images/, annotations/, imageLists/)", _coco_stuff10k, mat_reader("S", coco_ids)),
    # MMSegmentation names a stride of 256 for these two, but 512 is what its tiles, and their
    # published numbers, come from. Label 4_12 of some copies of 5_Labels_all is no label but a
    # picture; 5_Labels_for_participants has the right one.
    "potsdam": RawDataset(
        "2_Ortho_RGB and 5_Labels_all_noBoundary (or 5_Labels_all) of the ISPRS 2D Semantic Labeling benchmark, Potsdam",
        _fixed(("top_potsdam_{stem}_RGB.tif",), ("top_potsdam_{stem}_label_noBoundary.tif", "top_potsdam_{stem}_label.tif"), *POTSDAM),
        color_reader(BLACK), (512, 512, _ISPRS)),
    "vaihingen": RawDataset(
        "ISPRS_semantic_labeling_Vaihingen and its ..._ground_truth_eroded_COMPLETE (or ..._COMPLETE) of the ISPRS benchmark",
        _fixed(("top/top_mosaic_09cm_{stem}.tif",),
               ("top_mosaic_09cm_{stem}_noBoundary.tif", "!top/top_mosaic_09cm_{stem}.tif"), *VAIHINGEN),
        color_reader(BLACK), (512, 512, _ISPRS)),
    "isaid": RawDataset(
        "the images of DOTA-v1.0 and iSAID's Semantic_masks, of Wuhan, into folders train/ and val/",
        _isaid, color_reader(), (896, 512, "{stem}_{y}_{bottom}_{x}_{right}")),
    "camvid": RawDataset(
        "701_StillsRaw_full and LabeledApproved_full of CamVid, of Cambridge (train.txt and val.txt too for a split of your own)",
        _camvid, color_reader(BLACK, groups=CAMVID_COLORS), splits=("train", "val", "test")),
    "drive": RawDataset(
        "training/ and test/ of DRIVE, of Utrecht, with 1st_manual in both",
        _fixed(("{folder}/images/{stem}_{folder}.tif",), ("{folder}/1st_manual/{stem}_manual1.gif",),
               _numbers("{:02}", 21, 40), _numbers("{:02}", 1, 20), ("training", "test")), read_mask),
    "chase_db1": RawDataset(
        "CHASEDB1, of Kingston University",
        _fixed(("{stem}.jpg",), ("{stem}_1stHO.png",),
               _numbers("Image_{:02}{}", 1, 10, ("L", "R")), _numbers("Image_{:02}{}", 11, 14, ("L", "R"))), read_mask),
    "hrf": RawDataset(
        "the images and manual segmentations of the High-Resolution Fundus database, of Erlangen",
        _fixed(("{stem}.jpg",), ("{stem}.tif",),
               _numbers("{:02}_{}", 1, 5, ("dr", "g", "h")), _numbers("{:02}_{}", 6, 15, ("dr", "g", "h"))), read_mask),
    "stare": RawDataset(
        "stare-images and labels-ah of STARE, of Clemson",
        _fixed(("{stem}.ppm.gz", "{stem}.ppm"), ("{stem}.ah.ppm.gz", "{stem}.ah.ppm"), STARE[:10], STARE[10:]), read_mask),
}  # fmt: skip
NAMES = tuple(DATASETS)
