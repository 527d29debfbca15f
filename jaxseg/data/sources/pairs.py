"""Finding a data set's images, and the label of each."""

import contextlib
import dataclasses
import functools
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from jaxseg.data.builtin import CONVERTED
from jaxseg.data.folder_spec import LABEL_SUFFIXES
from jaxseg.data.sources.listing import (
    IMAGE_SUFFIXES,
    Images,
    broken_links,
    describe_left_out,
    file_format,
    first_names,
    image_stem,
    list_images,
)
from jaxseg.data.spec import DatasetSpec, Layout
from jaxseg.errors import DataError
from jaxseg.files import expand, read_text, walk
from jaxseg.registry import find_nearest

CLOSE = 0.6  # similarity of a folder's name that is suggested
# Endings that a `folder`'s label may add to its image's name, if no label has exactly that name.
LABEL_ENDINGS = ("_mask", "_label", "_labels", "_gt", "_seg", "_segmentation")
LABEL_FORMATS = {"PNG": ".png", "TIFF": ".tif", "BMP": ".bmp", "GIF": ".gif", "NPY": ".npy"}


# Kind (as in validate.report), file and message of an image that cannot be used.
Problem = tuple[str, Path, str]


@dataclasses.dataclass(frozen=True)
class Pair:
    """An image file and its label file.

    Attributes:
        name: Stem of the image, with its folders below the split's.
        image: Image file.
        label: Label file.
        label_map_name: Name of the label map of the label file; see `builtin.named_label_map`.
    """

    name: str
    image: Path
    label: Path
    label_map_name: str


def find_pairs(spec: DatasetSpec, root: str | Path, split: str) -> list[Pair]:
    """Return every image of a split with its label, in the order of names.

    Args:
        spec: The data set.
        root: Its folder.
        split: Plain name of the split.

    Raises:
        DataError: There is no image, or a label is missing.
    """
    if not root:
        hint = "config.dataset.root=DIR (config.eval.root for config.eval.dataset)"
        raise DataError(
            f"the data set '{spec.name}' needs its folder: {hint}", field="dataset.root"
        )
    root = expand(root)
    if not root.is_dir():
        hint = f"set config.dataset.root to the folder of the data set '{spec.name}'"
        raise DataError("no such folder", file=root, field="dataset.root", hint=hint)
    layout, pairs = _layout(spec), []
    for part in layout.parts(split):
        images = find_images(spec, root, part)
        if not images:
            raise _nothing_found(spec, root, split, part)
        labels = Labels(root, layout, part, images)
        pairs += [Pair(stem, image, *labels.find(stem)) for stem, image in images.items()]
    return pairs


def _layout(spec: DatasetSpec) -> Layout:
    """Return the layout of a data set of files."""
    if spec.layout is None:
        raise DataError(f"the data set '{spec.name}' is made of records, not of files")
    return spec.layout


# --- Images ---


def find_images(
    spec: DatasetSpec, root: Path, part: str, problems: list[Problem] | None = None
) -> dict[str, Path]:
    """Return {stem: image file} of one of a layout's parts, in the order of names.

    Args:
        spec: The data set.
        root: Its folder.
        part: The data set's own name for the split.
        problems: Collects the images that cannot be used; without it, the first raises an error.

    Raises:
        DataError: A listed image is missing, two images have one stem, or one is of a format that
            is not read.
    """
    layout = _layout(spec)
    if layout.listing:
        return _listed_images(spec, root, part)
    folder, (files, _, errors) = _part_files(layout, root, part)
    found: dict[str, Path] = {}
    wrong = [("damaged image", error) for error in errors]
    suffix = _suffix(layout)
    for file in files:
        path = file.relative_to(folder)
        if suffix == ".*":
            stem = path.with_name(image_stem(path.name)).as_posix()
        else:
            stem = path.as_posix()[: -len(suffix)]
        if stem in found:
            problem = f"has the name of {found[stem]}, so they would share one label"
            hint = "rename or remove one of them"
            wrong.append(("shared name", DataError(problem, file=file, hint=hint)))
        else:
            found[stem] = file
    if wrong and problems is None:
        raise wrong[0][1]
    if problems is not None:
        problems += [(kind, Path(error.file), str(error)) for kind, error in wrong]
    return found


def _suffix(layout: Layout) -> str:
    """Return how the images' names end: `.*` for any image format."""
    return layout.images.split("{stem}")[1]


def _part_files(layout: Layout, root: Path, part: str) -> tuple[Path, Images]:
    """Return (folder, its content) of a part without a list of names; no content without folder."""
    folder = root / layout.images.replace("{split}", part).split("{stem}")[0]
    suffix = _suffix(layout)
    if not folder.is_dir():
        return folder, Images([], [], [])
    if suffix == ".*":
        return folder, list_images(folder, nested=layout.nested)
    tree = walk(folder, nested=layout.nested)
    images = [file for file in tree.files if file.name.lower().endswith(suffix.lower())]
    others = {*tree.left_out, *tree.broken, *tree.files}.difference(images)
    return folder, Images(
        images,
        [(path, "") for path in sorted(others)],
        broken_links(tree.broken, (suffix.lower(),)),
    )


def _listed_images(spec: DatasetSpec, root: Path, part: str) -> dict[str, Path]:
    """Return {stem: image file} of a part with a list of names."""
    layout = _layout(spec)
    prefix, suffix = layout.images.replace("{split}", part).split("{stem}")
    listing = root / layout.listing.replace("{split}", part)
    if not listing.is_file():
        hint = f"it lists the images of split '{part}', one name a line{_conversion_hint(spec)}"
        raise DataError("no such file", file=listing, hint=hint)
    images = {}
    for name in read_names(listing):
        word = name.split()[0]
        # The whole line counts if there is such a file, as names may contain blanks; otherwise a
        # second column is left out.
        stems = (_listed_stem(text, prefix, suffix) for text in dict.fromkeys((name, word)))
        stem = next((stem for stem in stems if (root / f"{prefix}{stem}{suffix}").is_file()), None)
        if stem is None:
            missing = root / f"{prefix}{_listed_stem(word, prefix, suffix)}{suffix}"
            raise DataError(
                f"no such file, but {listing} lists it",
                file=missing,
                hint="restore it or take it off the list",
            )
        images[stem] = root / f"{prefix}{stem}{suffix}"
    return images


def _listed_stem(name: str, prefix: str, suffix: str) -> str:
    """Return the stem of a listed name: 'JPEGImages/a.jpg' and 'a.jpg' -> 'a'."""
    name = name.removeprefix("./").removeprefix(prefix)
    return name[: -len(suffix)] if name.lower().endswith(suffix.lower()) else name


def read_names(listing: Path) -> list[str]:
    """Return the lines of a list of files, each once, without blank ones and comments (`#`).

    Raises:
        DataError: It is not a text file.
    """
    return list(_count_names(listing))


def _count_names(listing: Path) -> Counter[str]:
    """Return the lines of a list of files, and how often it contains each."""
    lines = (line.strip() for line in read_text(listing).splitlines())
    return Counter(line for line in lines if line and not line.startswith("#"))


def left_out(spec: DatasetSpec, root: str | Path, part: str) -> str:
    """Return one line about unread files of a part, or names listed twice; "" for none.

    Args:
        spec: The data set.
        root: Its folder.
        part: The data set's own name for the split.
    """
    root, layout = expand(root), _layout(spec)
    if not layout.listing:
        folder, images = _part_files(layout, root, part)
        suffix = _suffix(layout)
        reason = "no image" if suffix == ".*" else f"not *{suffix}"
        return describe_left_out(folder, images.left_out, reason)
    listing = root / layout.listing.replace("{split}", part)
    if not listing.is_file():
        return ""
    doubled = [name for name, times in _count_names(listing).items() if times > 1]
    if not doubled:
        return ""
    names = ", ".join(doubled[:3])
    return f"{listing}: lists {len(doubled)} more than once, which count once: {names}"


# --- Labels ---


class Labels:
    """Finds the label files of one of a layout's parts; lists each of their folders once."""

    def __init__(self, root: Path, layout: Layout, part: str, images: Mapping[str, Path]):
        """Create the finder.

        Args:
            root: Folder of the data set.
            layout: Says how labels are named.
            part: The data set's own name for the split.
            images: {stem: file} of all images of the part; another image's label is not this one's.
        """
        self._root, self._layout, self._part, self._images = root, layout, part, images
        self._folders: dict[Path, dict[str, list[Path]]] = {}

    def find(self, stem: str) -> tuple[Path, str]:
        """Return (label file, name of its label map) of the image of this stem.

        The label has the image's stem; the case of the suffix and the Unicode form (NFC, NFD) may
        differ. Labels of a `folder` may also be named `<image file name>.png` or end in one of
        LABEL_ENDINGS.

        Raises:
            DataError: There is no label (the message says what is there instead), or several files
                might be it.
        """
        for wanted, label_map in self._wanted(stem):
            if found := self._present(wanted):
                return found, label_map
        others = self._alternatives(stem) if _suffix(self._layout) == ".*" else []
        if len({file for file, _ in others}) > 1:
            both = " and ".join(str(file) for file, _ in others[:2])
            raise DataError(
                f"{both} could both be its label",
                file=self._images[stem],
                hint=f"keep one of them as {next(self._wanted(stem))[0].name}",
            )
        if not others:
            raise self._missing(stem)
        return others[0]

    def _alternatives(self, stem: str) -> list[tuple[Path, str]]:
        """Return the labels whose names add something to the image's."""
        names = [
            Path(stem).with_name(self._images[stem].name).as_posix(),
            *(stem + ending for ending in LABEL_ENDINGS),
        ]
        wanted = (pair for name in names if name not in self._images for pair in self._wanted(name))
        return [(found, ids) for file, ids in wanted if (found := self._present(file))]

    def _wanted(self, stem: str) -> Iterator[tuple[Path, str]]:
        """Yield (label file, name of its label map) in order of preference."""
        for pattern, label_map in self._layout.labels:
            path = pattern.replace("{split}", self._part).replace("{stem}", stem)
            yield self._root / path, label_map

    def _present(self, wanted: Path) -> Path | None:
        """Return the file of this name, in any case of its suffix and Unicode form of its path."""
        files = self._list(wanted.parent).get(_normal_form(wanted.name), ())
        if not files:
            return None
        return next((file for file in files if file.name == wanted.name), files[0])

    def _list(self, folder: Path) -> dict[str, list[Path]]:
        """Return {name in one form: the files} of a folder, {} if it is missing."""
        if folder not in self._folders:
            listed: dict[str, list[Path]] = {}
            there = folder if folder.is_dir() else self._other_form(folder)
            for file in walk(there, nested=False).files if there else ():
                listed.setdefault(_normal_form(file.name), []).append(file)
            self._folders[folder] = listed
        return self._folders[folder]

    def _other_form(self, folder: Path) -> Path | None:
        """Return the folder of this name in another Unicode form."""
        if folder == self._root or not folder.is_relative_to(self._root):
            return None
        parent = folder.parent if folder.parent.is_dir() else self._other_form(folder.parent)
        if parent is None:
            return None
        wanted = unicodedata.normalize("NFC", folder.name)
        for path in sorted(parent.iterdir()):
            if unicodedata.normalize("NFC", path.name) == wanted:
                return path
        return None

    def _missing(self, stem: str) -> DataError:
        """Return the error about a missing label."""
        image, (wanted, *others) = self._images[stem], [file for file, _ in self._wanted(stem)]
        names = str(wanted)
        if _suffix(self._layout) != ".*":
            names = " or ".join(map(str, (wanted, *others)))
        hint = f"add it, or take the image out.{self._what_is_there(image, wanted)}"
        return DataError(f"its label {names} is missing", file=image, hint=hint)

    def _what_is_there(self, image: Path, wanted: Path) -> str:
        """Return a sentence about the file in place of a missing label; "" for nothing like it."""
        folder, stem = wanted.parent, wanted.stem
        if not folder.is_dir():
            return f" There is no folder {folder}.{_labels_beside(image)}"
        tree = walk(folder, nested=False)
        if broken := [file for file in tree.broken if file.stem == stem]:
            return f" {broken[0].name} is a broken link to {broken[0].readlink()}."
        if same := [file for file in tree.files if stem in (file.stem, file.name)]:
            return f" There is {same[0].name}{_unfit(same[0], stem)}"
        owned = {Path(other).name for other in self._images}
        for file in tree.files:
            other_case = file.stem.lower() == stem.lower()
            if other_case or (file.stem not in owned and _extends(file.stem.lower(), stem.lower())):
                name = f"{wanted.stem}{file.suffix}"
                return (
                    f" There is {file.name}: rename it to {name} if it is the label of "
                    f"{image.name}."
                )
        return ""


def _labels_beside(image: Path) -> str:
    """Return a sentence about labels in the folder of the images, "" if there are none."""
    for file in walk(image.parent, nested=False).files:
        if file.stem in {image.stem + ending for ending in LABEL_ENDINGS}:
            return f" Labels seem to be beside the images ({file.name}): move them there."
    return ""


def _unfit(file: Path, stem: str) -> str:
    """Return why a file of a label's stem is not that label, to complete a sentence."""
    kind = file_format(file)
    if kind in LABEL_FORMATS:
        return f", which holds {kind}: rename it to {stem}{LABEL_FORMATS[kind]}."
    lossy = file.suffix.lower() in (".jpg", ".jpeg", ".jpe", ".jfif")
    end = ", not compressed with loss" if lossy else ""
    return f": labels must be PNG, TIFF, BMP, GIF or NPY{end}."


def _normal_form(name: str) -> str:
    """Return a file name in Unicode's form NFC, its suffix in lower case."""
    stem, dot, suffix = unicodedata.normalize("NFC", name).rpartition(".")
    return f"{stem}{dot}{suffix.lower()}"


def _extends(name: str, stem: str) -> bool:
    """Return whether a name extends a stem: 's00-mask' and 'mask_s00' extend 's00', not 's001'."""
    if name.startswith(stem):
        rest = name.removeprefix(stem)
        return bool(rest) and not rest[0].isalnum()
    if name.endswith(stem):
        rest = name.removesuffix(stem)
        return bool(rest) and not rest[-1].isalnum()
    return False


def unused_labels(spec: DatasetSpec, root: str | Path, part: str) -> list[Path]:
    """Return the label files of a `folder`'s part that belong to no image.

    Args:
        spec: The data set; [] for any but a `folder`.
        root: Its folder.
        part: The data set's own name for the split.
    """
    root, layout = expand(root), _layout(spec)
    folder = root / layout.labels[0][0].replace("{split}", part).split("{stem}")[0]
    if _suffix(layout) != ".*" or not folder.is_dir():
        return []
    images = find_images(spec, root, part, problems=[])
    labels = Labels(root, layout, part, images)
    real_folder = functools.cache(os.path.realpath)
    used = set()
    for stem in images:
        with contextlib.suppress(DataError):  # which find_pairs raises
            label = labels.find(stem)[0]
            used.add((real_folder(label.parent), label.name))
    files = [
        file
        for file in walk(folder, nested=layout.nested).files
        if file.suffix.lower() in LABEL_SUFFIXES
    ]
    return [file for file in files if (real_folder(file.parent), file.name) not in used]


# --- Messages ---


def _conversion_hint(spec: DatasetSpec) -> str:
    if spec.name not in CONVERTED:
        return ""
    return "; the files as their makers distribute them go through scripts/prepare_data.py first"


def _nothing_found(spec: DatasetSpec, root: Path, split: str, part: str) -> DataError:
    """Return the error about an empty split."""
    layout = _layout(spec)
    folder, (_, others, _) = _part_files(layout, root, part)
    pattern = layout.images.replace("{split}", part).replace("{stem}", "*")
    known = pattern.rsplit("/", 1)[-1]
    if pattern.endswith(".*"):
        known = " ".join(IMAGE_SUFFIXES)
    if folder.is_dir():
        there = f"it holds {first_names(folder, others)}" if others else "it is empty"
        problem = f"no image of split '{split}' there ({there})"
        return DataError(problem, file=folder, hint=f"expected files {known}")
    other = ""
    if split == "val":
        other = (
            " (a part of another split will do: train_split='train[:80%]' with "
            "val_split='train[80%:]')"
        )
    hint = (
        f"put the images of split '{split}' there, or set config.dataset.root, train_split or "
        f"val_split{other}{_conversion_hint(spec)}.{_similar_folder(root, folder)}"
    )
    return DataError("no such folder", file=folder, hint=hint)


def _similar_folder(root: Path, folder: Path) -> str:
    """Return ' There is .../Images: ...' if a name is like the missing one, else ""."""
    missing = folder
    while missing != root and not missing.parent.is_dir():
        missing = missing.parent
    if missing == root:
        return ""
    there = {
        path.name.lower(): path
        for path in sorted(missing.parent.iterdir())
        if path.is_dir() and not path.name.startswith(".")
    }
    name = missing.name.lower()
    near = [other for other in there if other.startswith(name) or name.startswith(other)]
    nearest = near[0] if near else find_nearest(name, there, CLOSE)
    if not nearest:
        return ""
    return f" There is {there[nearest]}: if it is this one, rename it to {missing.name}."
