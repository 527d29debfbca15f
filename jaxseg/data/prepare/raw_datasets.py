"""Data sets as their makers distribute them, where that is no pair of files which can be read in place: .mat files, colour labels,
tiles, merged lists. `jobs` is the door; prepare.py writes what they yield.

Files are found by the end of their path anywhere below the root, in upper or lower case, so that it does not matter how deep an
archive unpacked; of several copies the first by name is taken. Splits and tiles are those of MMSegmentation's published models.
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
    colors,
    context_ids,
    mat_ids,
    read_bytes,
    read_mask,
)
from jaxseg.data.sources.pairs import read_names
from jaxseg.errors import DataError
from jaxseg.files import expand, walk

Tree = Mapping[str, list[Path]]  # file name in lower case -> where such files lie
Strings = tuple[str, ...]
Wanted = tuple[
    str, Strings, Strings
]  # stem, ends of the image's path and of the label's in order of preference
Finder = Callable[[Tree, Path, str], Iterator[Wanted]]
Item = tuple[str, Path | np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Job:
    """One image to convert. load() yields (stem, image, label), once or a tile at a time.

    image: a JPEG or PNG file, or RGB uint8 [H, W, 3]; label: class ids uint8 [H, W], 255 is ignored. load() may raise DataError.
    files: what load() reads.
    """

    name: str
    load: Callable[[], Iterator[Item]]
    files: tuple[Path, ...] = ()


@dataclasses.dataclass(frozen=True)
class Official:
    """origin: what to unpack below the root. find: (tree, root, split) -> what the split is made of. read: label file -> class ids.

    tile: (side, stride, name of a tile), pixels; None for whole images.
    """

    origin: str
    find: Finder
    read: Reader
    tile: tuple[int, int, str] | None = None
    splits: Strings = ("train", "val")


def jobs(name: str, root: str | Path, split: str) -> list[Job]:
    """What split `split` ('train', 'val'; of camvid 'test' too) of the unpacked download below `root` is made of.

    Raises DataError for another set than NAMES, another split, or a file that is not there.
    """
    if name not in SETS:
        raise DataError(
            f"'{name}' is not among the data sets that are converted from their official download: {', '.join(NAMES)}."
        )
    official = SETS[name]
    if not str(root):
        raise DataError(
            f"The data set '{name}' needs the folder where you unpacked {official.origin}."
        )
    root = expand(root).absolute()
    if split not in official.splits:
        raise DataError(
            f"The data set '{name}' has no split '{split}'; it has {', '.join(official.splits)}."
        )
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; make it, and unpack there {official.origin}.")
    tree = _index(root)
    try:
        files = [
            (stem, _need(tree, *image), _need(tree, *label))
            for stem, image, label in official.find(tree, root, split)
        ]
    except FileNotFoundError as error:
        raise DataError(
            f"{root}: nowhere below it lies {error}, which '{name}' needs; unpack there {official.origin}."
        ) from None
    return [
        Job(stem, functools.partial(_load, name, stem, image, label), (image, label))
        for stem, image, label in files
    ]


def _load(name: str, stem: str, image_file: Path, label_file: Path) -> Iterator[Item]:
    official, spec = SETS[name], get_spec(name)
    label = official.read(label_file, spec)
    if official.tile is None and image_file.suffix.lower() in (".jpg", ".png"):
        check_sizes(inspect_image(image_file, image_file).size, label.shape, image_file, label_file)
        yield stem, image_file, label
        return
    image = decode_image(read_bytes(image_file), image_file)
    check_sizes(image.shape[:2], label.shape, image_file, label_file)
    yield from (
        ((stem, image, label),)
        if official.tile is None
        else _tiles(stem, image, label, *official.tile)
    )


# --- Tiles ------------------------------------------------------------------------------------------------------------


def starts(length: int, side: int, stride: int) -> list[int]:
    """Where the tiles of a line of pixels begin: every `stride`, but moved back from the end until they lie within."""
    return sorted({max(0, min(start, length - side)) for start in range(0, length, stride)})


def _tiles(
    stem: str, image: np.ndarray, label: np.ndarray, side: int, stride: int, name: str
) -> Iterator[Item]:
    """Tiles [side, side]; what is smaller is padded at the right and bottom, the image with 0 and the label with 255."""
    pad = [(0, max(0, side - size)) for size in label.shape]
    image, label = np.pad(image, [*pad, (0, 0)]), np.pad(label, pad, constant_values=IGNORE)
    for y in starts(label.shape[0], side, stride):
        for x in starts(label.shape[1], side, stride):
            window = np.s_[y : y + side, x : x + side]
            tile = name.format(stem=stem, y=y, x=x, bottom=y + side, right=x + side)
            yield tile, np.ascontiguousarray(image[window]), np.ascontiguousarray(label[window])


# --- Finding ----------------------------------------------------------------------------------------------------------


def _index(root: Path) -> Tree:
    tree: dict[str, list[Path]] = {}
    for file in walk(root).files:
        tree.setdefault(file.name.lower(), []).append(file)
    return tree


def _find(tree: Tree, *ends: str) -> Path | None:
    """The first file whose path ends so; '!folder/name' is a file of this name in any other folder."""
    for end in map(str.lower, ends):
        for file in tree.get(end.rsplit("/")[-1], ()):
            folder = end[1:].split("/")[0] if end.startswith("!") else ""
            if (
                file.parent.name.lower() != folder
                if folder
                else file.as_posix().lower().endswith(f"/{end}")
            ):
                return file
    return None


def _need(tree: Tree, *ends: str) -> Path:
    file = _find(tree, *ends)
    if file is None:
        raise FileNotFoundError(
            " or ".join(end.rsplit("/")[-1] if end.startswith("!") else end for end in ends)
        )
    return file


def _stems(listing: Path) -> list[str]:
    """The names of a list of files: the first word of each line, without folder and suffix."""
    return [Path(line.split()[0]).stem for line in read_names(listing)]


def _fixed(
    images: Strings,
    labels: Strings,
    train: Strings,
    val: Strings,
    folders: tuple[str, str] = ("", ""),
) -> Finder:
    """A set whose stems are known. Patterns hold {stem} and {folder}, the split's; the first of `labels` that is there counts for all."""

    def find(tree: Tree, root: Path, split: str) -> Iterator[Wanted]:
        stems, folder = (train, folders[0]) if split == "train" else (val, folders[1])
        names = [[label.format(stem=stem, folder=folder) for stem in stems] for label in labels]
        chosen = next((ends for ends in names if any(_find(tree, end) for end in ends)), names[0])
        for stem, label in zip(stems, chosen):
            yield stem, tuple(image.format(stem=stem, folder=folder) for image in images), (label,)

    return find


def _voc12aug(tree: Tree, root: Path, split: str) -> Iterator[Wanted]:
    lists = {
        name: _need(tree, f"VOC2012/ImageSets/Segmentation/{name}.txt", f"Segmentation/{name}.txt")
        for name in ("train", "val")
    }
    voc, stems = (
        lists["train"].parents[2].name,
        {name: _stems(file) for name, file in lists.items()},
    )
    for stem in stems[split]:
        yield stem, (f"{voc}/JPEGImages/{stem}.jpg",), (f"{voc}/SegmentationClass/{stem}.png",)
    if split == "train":
        more = {
            stem for name in ("train", "val") for stem in _stems(_need(tree, f"dataset/{name}.txt"))
        }
        for stem in sorted(more.difference(*stems.values())):
            yield stem, (f"{voc}/JPEGImages/{stem}.jpg",), (f"cls/{stem}.mat",)


def _pascal_context(tree: Tree, root: Path, split: str) -> Iterator[Wanted]:
    listing = _need(tree, f"VOC2010/ImageSets/Main/{split}.txt", f"ImageSets/Main/{split}.txt")
    for stem in _stems(listing):
        yield stem, (f"{listing.parents[2].name}/JPEGImages/{stem}.jpg",), (f"trainval/{stem}.mat",)


def _coco_stuff10k(tree: Tree, root: Path, split: str) -> Iterator[Wanted]:
    for stem in _stems(_need(tree, f"imageLists/{'train' if split == 'train' else 'test'}.txt")):
        yield stem, (f"{stem}.jpg",), (f"annotations/{stem}.mat",)


def _isaid(tree: Tree, root: Path, split: str) -> Iterator[Wanted]:
    ending, found = "_instance_color_RGB.png", set()
    for file in (file for files in tree.values() for file in files):
        stem = file.name.removesuffix(ending).removesuffix(".png")
        if split in file.relative_to(root).parts[:-1] and stem[:1] == "P" and stem[1:].isdigit():
            found.add(stem)
    if not found:
        raise FileNotFoundError(f"{split}/.../P0000.png")
    for stem in sorted(found):
        yield stem, (f"{stem}.png",), (stem + ending,)


def _camvid(tree: Tree, root: Path, split: str) -> Iterator[Wanted]:
    """The split is that of a list {split}.txt if there is one, else SegNet's, which goes by recording and time."""
    listing = _find(tree, f"{split}.txt")
    labels = [files[0].name[:-6] for name, files in tree.items() if name.endswith("_l.png")]
    stems = (
        _stems(listing)
        if listing
        else sorted(stem for stem in labels if _segnet_split(stem) == split)
    )
    if not stems:
        raise FileNotFoundError("LabeledApproved_full/..._L.png")
    for stem in stems:
        yield stem, (f"701_StillsRaw_full/{stem}.png", f"{stem}.png"), (f"{stem}_L.png",)


def _segnet_split(stem: str) -> str:
    """The split of SegNet (arXiv:1511.00561), 367 + 101 + 233 images, of a frame such as '0016E5_07959' or 'Seq05VD_f00030'."""
    recording, _, frame = stem.partition("_")
    time = int("".join(filter(str.isdigit, frame)) or 0)
    if recording == "Seq05VD" or (recording == "0001TP" and time > 8520):
        return "test"
    return "val" if recording == "0016E5" and 7959 <= time <= 8159 else "train"


# --- The table --------------------------------------------------------------------------------------------------------

POTSDAM = (
    tuple(
        "2_10 2_11 2_12 3_10 3_11 3_12 4_10 4_11 4_12 5_10 5_11 5_12 6_10 6_11 6_12 6_7 6_8 6_9 7_10 7_11 7_12 7_7 7_8 7_9".split()
    ),
    tuple("2_13 2_14 3_13 3_14 4_13 4_14 4_15 5_13 5_14 5_15 6_13 6_14 6_15 7_13".split()),
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


_CONTEXT = Official(
    "VOCtrainval of PASCAL VOC 2010 and the PASCAL Context annotations (trainval/*.mat), of Stanford",
    _pascal_context, mat_ids("LabelMap", context_ids),
)  # fmt: skip
_ISPRS = "{stem}_{x}_{y}_{right}_{bottom}"
SETS: dict[str, Official] = {
    "voc12aug": Official(
        "VOCtrainval of PASCAL VOC 2012 and Berkeley's Semantic Boundaries (benchmark_RELEASE/dataset), both below this one folder",
        _voc12aug, mat_ids("GTcls.Segmentation", lambda spec: spec.label_map)),
    "pascal_context": _CONTEXT,
    "pascal_context_59": _CONTEXT,
    "coco_stuff10k": Official(
        "COCO-Stuff 10K v1.1, of Edinburgh (images/, annotations/, imageLists/)", _coco_stuff10k, mat_ids("S", coco_ids)),
    # MMSegmentation names a stride of 256 for these two, but 512 is what its tiles, and their published numbers, come from.
    # Label 4_12 of some copies of 5_Labels_all is no label but a picture; 5_Labels_for_participants has the right one.
    "potsdam": Official(
        "2_Ortho_RGB and 5_Labels_all_noBoundary (or 5_Labels_all) of the ISPRS 2D Semantic Labeling benchmark, Potsdam",
        _fixed(("top_potsdam_{stem}_RGB.tif",), ("top_potsdam_{stem}_label_noBoundary.tif", "top_potsdam_{stem}_label.tif"), *POTSDAM),
        colors(BLACK), (512, 512, _ISPRS)),
    "vaihingen": Official(
        "ISPRS_semantic_labeling_Vaihingen and its ..._ground_truth_eroded_COMPLETE (or ..._COMPLETE) of the ISPRS benchmark",
        _fixed(("top/top_mosaic_09cm_{stem}.tif",),
               ("top_mosaic_09cm_{stem}_noBoundary.tif", "!top/top_mosaic_09cm_{stem}.tif"), *VAIHINGEN),
        colors(BLACK), (512, 512, _ISPRS)),
    "isaid": Official(
        "the images of DOTA-v1.0 and iSAID's Semantic_masks, of Wuhan, into folders train/ and val/",
        _isaid, colors(), (896, 512, "{stem}_{y}_{bottom}_{x}_{right}")),
    "camvid": Official(
        "701_StillsRaw_full and LabeledApproved_full of CamVid, of Cambridge (train.txt and val.txt too for a split of your own)",
        _camvid, colors(BLACK, groups=CAMVID_COLORS), splits=("train", "val", "test")),
    "drive": Official(
        "training/ and test/ of DRIVE, of Utrecht, with 1st_manual in both",
        _fixed(("{folder}/images/{stem}_{folder}.tif",), ("{folder}/1st_manual/{stem}_manual1.gif",),
               _numbers("{:02}", 21, 40), _numbers("{:02}", 1, 20), ("training", "test")), read_mask),
    "chase_db1": Official(
        "CHASEDB1, of Kingston University",
        _fixed(("{stem}.jpg",), ("{stem}_1stHO.png",),
               _numbers("Image_{:02}{}", 1, 10, ("L", "R")), _numbers("Image_{:02}{}", 11, 14, ("L", "R"))), read_mask),
    "hrf": Official(
        "the images and manual segmentations of the High-Resolution Fundus database, of Erlangen",
        _fixed(("{stem}.jpg",), ("{stem}.tif",),
               _numbers("{:02}_{}", 1, 5, ("dr", "g", "h")), _numbers("{:02}_{}", 6, 15, ("dr", "g", "h"))), read_mask),
    "stare": Official(
        "stare-images and labels-ah of STARE, of Clemson",
        _fixed(("{stem}.ppm.gz", "{stem}.ppm"), ("{stem}.ah.ppm.gz", "{stem}.ah.ppm"), STARE[:10], STARE[10:]), read_mask),
}  # fmt: skip
NAMES = tuple(SETS)
