"""Files of official releases, found by the end of their path, and a finder for each data set.

A finder takes (tree, root, split): all files by name, the folder of the download, and "train" or
"val" ("test" of camvid). It yields the files of the split, and raises FileNotFoundError with the
name of a file that it needs.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from jaxseg.data.sources.pairs import read_names
from jaxseg.files import walk

Tree = Mapping[str, list[Path]]  # file name in lower case -> all files of this name
Strings = tuple[str, ...]
# Stem, and ends of the image's and the label's path in order of preference.
FilePair = tuple[str, Strings, Strings]
Finder = Callable[[Tree, Path, str], Iterator[FilePair]]


def index_files(root: Path) -> Tree:
    """Return all files below a folder by their names."""
    tree: dict[str, list[Path]] = {}
    for file in walk(root).files:
        tree.setdefault(file.name.lower(), []).append(file)
    return tree


def find_file(tree: Tree, *ends: str) -> Path | None:
    """Return the first file whose path has one of these ends, None if there is none.

    '!folder/name' stands for a file of this name in any other folder.
    """
    for end in map(str.lower, ends):
        for file in tree.get(end.rsplit("/")[-1], ()):
            if _ends_with(file, end):
                return file
    return None


def _ends_with(file: Path, end: str) -> bool:
    if end.startswith("!"):
        return file.parent.name.lower() != end[1:].split("/")[0]
    return file.as_posix().lower().endswith(f"/{end}")


def require_file(tree: Tree, *ends: str) -> Path:
    """Return what `find_file` finds, or raise FileNotFoundError with the names looked for."""
    file = find_file(tree, *ends)
    if file is None:
        names = (end.rsplit("/")[-1] if end.startswith("!") else end for end in ends)
        raise FileNotFoundError(" or ".join(names))
    return file


def _stems(listing: Path) -> list[str]:
    """Return the names in a list of files: each line's first word, without folder and suffix."""
    return [Path(line.split()[0]).stem for line in read_names(listing)]


def find_fixed(
    images: Strings,
    labels: Strings,
    train: Strings,
    val: Strings,
    folders: tuple[str, str] = ("", ""),
) -> Finder:
    """Make a finder of a data set with known stems.

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
            if any(find_file(tree, end) for end in ends):
                chosen = ends
                break
        for stem, label in zip(stems, chosen):
            yield stem, tuple(image.format(stem=stem, folder=folder) for image in images), (label,)

    return find


def find_voc12aug(tree: Tree, root: Path, split: str) -> Iterator[FilePair]:
    """Find VOC's images with its own labels, and in train further ones with Berkeley's."""
    lists = {
        name: require_file(
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
            for stem in _stems(require_file(tree, f"dataset/{name}.txt"))
        }
        for stem in sorted(berkeley.difference(*stems.values())):
            yield stem, (f"{voc}/JPEGImages/{stem}.jpg",), (f"cls/{stem}.mat",)


def find_pascal_context(tree: Tree, root: Path, split: str) -> Iterator[FilePair]:
    """Find VOC 2010's images that have annotations of PASCAL Context, by its lists."""
    listing = require_file(
        tree, f"VOC2010/ImageSets/Main/{split}.txt", f"ImageSets/Main/{split}.txt"
    )
    for stem in _stems(listing):
        yield stem, (f"{listing.parents[2].name}/JPEGImages/{stem}.jpg",), (f"trainval/{stem}.mat",)


def find_coco_stuff10k(tree: Tree, root: Path, split: str) -> Iterator[FilePair]:
    """Find the images of COCO-Stuff 10K's lists."""
    listing = "train" if split == "train" else "test"
    for stem in _stems(require_file(tree, f"imageLists/{listing}.txt")):
        yield stem, (f"{stem}.jpg",), (f"annotations/{stem}.mat",)


def find_isaid(tree: Tree, root: Path, split: str) -> Iterator[FilePair]:
    """Find the images P0000.png, ... below a folder of the split's name."""
    ending, found = "_instance_color_RGB.png", set()
    for file in (file for files in tree.values() for file in files):
        stem = file.name.removesuffix(ending).removesuffix(".png")
        if split in file.relative_to(root).parts[:-1] and stem[:1] == "P" and stem[1:].isdigit():
            found.add(stem)
    if not found:
        raise FileNotFoundError(f"{split}/.../P0000.png")
    for stem in sorted(found):
        yield stem, (f"{stem}.png",), (stem + ending,)


def find_camvid(tree: Tree, root: Path, split: str) -> Iterator[FilePair]:
    """Find the images of the list {split}.txt, else of SegNet's split, by recording and time."""
    listing = find_file(tree, f"{split}.txt")
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
    """Return SegNet's split (arXiv:1511.00561; 367 + 101 + 233 images) of frame '0016E5_07959'."""
    recording, _, frame = stem.partition("_")
    time = int("".join(filter(str.isdigit, frame)) or 0)
    if recording == "Seq05VD" or (recording == "0001TP" and time > 8520):
        return "test"
    return "val" if recording == "0016E5" and 7959 <= time <= 8159 else "train"
