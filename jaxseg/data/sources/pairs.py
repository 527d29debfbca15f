"""Finding a data set's images, and the label of each."""

import contextlib
import dataclasses
import difflib
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

# What the name of a `folder`'s label may add to its image's name, where no file has just that name.
LABEL_ENDINGS = ("_mask", "_label", "_labels", "_gt", "_seg", "_segmentation")
LABEL_FORMATS = {
    "PNG": ".png",
    "TIFF": ".tif",
    "BMP": ".bmp",
    "GIF": ".gif",
    "NPY": ".npy",
}  # without loss


@dataclasses.dataclass(frozen=True)
class Pair:
    """An image file, its label file, and the name of the label file's map."""

    name: str
    image: Path
    label: Path
    label_map_name: str


def find_pairs(spec: DatasetSpec, root: str | Path, split: str) -> list[Pair]:
    """Every image of a split with its label, by name. Raises DataError if there is none or a label is missing."""
    if not root:
        hint = "--config.dataset.root=DIR (--config.eval.root for config.eval.dataset)"
        raise DataError(
            f"The data set '{spec.name}' needs its folder: {hint}.", field="dataset.root"
        )
    root, pairs = expand(root), []
    if not root.is_dir():
        raise DataError("no such folder", file=root, field="dataset.root",
                        hint=f"set config.dataset.root to where the data set '{spec.name}' lies")  # fmt: skip
    for part in spec.layout.parts(split):
        images = find_images(spec, root, part)
        if not images:
            raise _nothing_found(spec, root, split, part)
        labels = Labels(root, spec.layout, part, images)
        pairs += [Pair(stem, image, *labels.find(stem)) for stem, image in images.items()]
    return pairs


# --- Images -----------------------------------------------------------------------------------------------------------


def find_images(
    spec: DatasetSpec, root: Path, part: str, wrong: list[tuple[str, Path, str]] | None = None
) -> dict[str, Path]:
    """{stem: image file} of one of a layout's parts, in the order of names.

    Args:
        spec: the data set.
        root: where it lies.
        part: the data set's own name for the split.
        wrong: takes (kind as in report.KINDS, file, message) of images that cannot be used, instead of an error.

    Raises:
        DataError: a listed image is missing, two images have one stem, or one is of a kind that is not read.
    """
    if spec.layout.listing:
        return _listed_images(spec, root, part)
    folder, (files, _, errors) = _part_files(spec.layout, root, part)
    problems = [("damaged image", Path(error.file), error) for error in errors]
    suffix, found = _suffix(spec.layout), {}
    for file in files:
        path = file.relative_to(folder)
        stem = (
            str(path.with_name(image_stem(path.name)))
            if suffix == ".*"
            else str(path)[: -len(suffix)]
        )
        if stem in found:
            problem = f"has the name of {found[stem]}, so they would share one label"
            problems.append(
                (
                    "shared name",
                    file,
                    DataError(problem, file=file, hint="rename or remove one of them"),
                )
            )
            continue
        found[stem] = file
    if problems and wrong is None:
        raise problems[0][2]
    if problems:
        wrong += [(kind, file, str(error)) for kind, file, error in problems]
    return found


def _suffix(layout: Layout) -> str:
    """How the images' names end: `.*` for any image format."""
    return layout.images.split("{stem}")[1]


def _part_files(layout: Layout, root: Path, part: str) -> tuple[Path, Images]:
    """(folder, what it holds) of a part that has no list of names; nothing where the folder is missing."""
    folder, suffix = (
        root / layout.images.replace("{split}", part).split("{stem}")[0],
        _suffix(layout),
    )
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
    prefix, suffix = spec.layout.images.replace("{split}", part).split("{stem}")
    listing = root / spec.layout.listing.replace("{split}", part)
    if not listing.is_file():
        hint = f"it lists the images of split '{part}', one name a line{_official_hint(spec)}"
        raise DataError("no such file", file=listing, hint=hint)
    images = {}
    for name in read_names(listing):
        word = name.split()[0]
        # The whole line counts where such a file is there, as names may hold blanks; else a second column is left out.
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
    """'JPEGImages/a.jpg' and 'a.jpg' -> 'a'."""
    name = name.removeprefix("./").removeprefix(prefix)
    return name[: -len(suffix)] if name.lower().endswith(suffix.lower()) else name


def read_names(listing: Path) -> list[str]:
    """The lines of a list of files, each once, without blank ones and comments (`#`). Raises DataError for no text."""
    return list(_count_names(listing))


def _count_names(listing: Path) -> Counter[str]:
    lines = (line.strip() for line in read_text(listing).splitlines())
    return Counter(line for line in lines if line and not line.startswith("#"))


def left_out(spec: DatasetSpec, root: str | Path, part: str) -> str:
    """One line about files of a part that are not read, and names that a list has twice; "" if there are none."""
    root, layout = expand(root), spec.layout
    if not layout.listing:
        folder, images = _part_files(layout, root, part)
        return describe_left_out(
            folder,
            images.left_out,
            "no image" if _suffix(layout) == ".*" else f"not *{_suffix(layout)}",
        )
    listing = root / layout.listing.replace("{split}", part)
    doubled = (
        [name for name, times in _count_names(listing).items() if times > 1]
        if listing.is_file()
        else []
    )
    return (
        f"{listing}: lists {len(doubled)} more than once, which count once: {', '.join(doubled[:3])}"
        if doubled
        else ""
    )


# --- Labels -----------------------------------------------------------------------------------------------------------


class Labels:
    """The label files of one of a layout's parts, of whose folders each is listed once.

    Args:
        root: where the data set lies.
        layout: says how labels are named.
        part: the data set's own name for the split.
        images: {stem: file}, all of the part: what is another image's label is none of this one.
    """

    def __init__(self, root: Path, layout: Layout, part: str, images: Mapping[str, Path]):
        self._root, self._layout, self._part, self._images = root, layout, part, images
        self._folders: dict[Path, dict[str, list[Path]]] = {}

    def find(self, stem: str) -> tuple[Path, str]:
        """(label file, name of its map) of the image of this stem.

        The label has the image's stem; case of the suffix and Unicode form (NFC, NFD) may differ. Labels of a `folder`
        may also be named `<image file name>.png` or end in one of LABEL_ENDINGS.

        Raises:
            DataError: there is none, and what there is instead; or several that might be it.
        """
        for wanted, ids in self._wanted(stem):
            if found := self._present(wanted):
                return found, ids
        others = []
        if _suffix(self._layout) == ".*":
            names = [
                str(Path(stem).with_name(self._images[stem].name)),
                *(stem + ending for ending in LABEL_ENDINGS),
            ]
            wanted = (
                pair for name in names if name not in self._images for pair in self._wanted(name)
            )
            others = [(found, ids) for file, ids in wanted if (found := self._present(file))]
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

    def _wanted(self, stem: str) -> Iterator[tuple[Path, str]]:
        """(label file, name of its map) in order of preference."""
        for pattern, ids in self._layout.labels:
            yield self._root / pattern.replace("{split}", self._part).replace("{stem}", stem), ids

    def _present(self, wanted: Path) -> Path | None:
        """The file of this name, whatever the case of its suffix and the Unicode form of its path."""
        files = self._list(wanted.parent).get(_same(wanted.name), ())
        return (
            next((file for file in files if file.name == wanted.name), files[0]) if files else None
        )

    def _list(self, folder: Path) -> dict[str, list[Path]]:
        """{name in one form: the files} of a folder; nothing where it is missing."""
        if folder not in self._folders:
            self._folders[folder] = listed = {}
            there = folder if folder.is_dir() else self._other_form(folder)
            for file in walk(there, nested=False).files if there else ():
                listed.setdefault(_same(file.name), []).append(file)
        return self._folders[folder]

    def _other_form(self, folder: Path) -> Path | None:
        """The folder of this name in another Unicode form."""
        if folder == self._root or not folder.is_relative_to(self._root):
            return None
        parent = folder.parent if folder.parent.is_dir() else self._other_form(folder.parent)
        wanted = unicodedata.normalize("NFC", folder.name)
        return (
            next(
                (
                    path
                    for path in sorted(parent.iterdir())
                    if unicodedata.normalize("NFC", path.name) == wanted
                ),
                None,
            )
            if parent
            else None
        )

    def _missing(self, stem: str) -> DataError:
        image, (wanted, *others) = self._images[stem], [file for file, _ in self._wanted(stem)]
        names = (
            str(wanted)
            if _suffix(self._layout) == ".*"
            else " or ".join(map(str, (wanted, *others)))
        )
        hint = f"add it, or take the image out.{self._what_is_there(image, wanted)}"
        return DataError(f"its label {names} is missing", file=image, hint=hint)

    def _what_is_there(self, image: Path, wanted: Path) -> str:
        """What lies where the label is missing, as a sentence; "" for nothing that is like it."""
        folder, stem = wanted.parent, wanted.stem
        if not folder.is_dir():
            beside = [
                file.name
                for file in walk(image.parent, nested=False).files
                if file.stem in {stem + ending for ending in LABEL_ENDINGS}
            ]
            return f" There is no folder {folder}." + (
                f" Labels seem to lie beside the images ({beside[0]}): move them there."
                if beside
                else ""
            )
        tree = walk(folder, nested=False)
        if broken := [file for file in tree.broken if file.stem == stem]:
            return f" {broken[0].name} is a broken link to {broken[0].readlink()}."
        if same := [file for file in tree.files if stem in (file.stem, file.name)]:
            name, kind = same[0].name, file_format(same[0])
            if kind in LABEL_FORMATS:
                return f" There is {name}, which holds {kind}: rename it to {stem}{LABEL_FORMATS[kind]}."
            lossy = (
                ", not compressed with loss"
                if same[0].suffix.lower() in (".jpg", ".jpeg", ".jpe", ".jfif")
                else ""
            )
            return f" There is {name}: labels must be PNG, TIFF, BMP, GIF or NPY{lossy}."
        owned = {Path(other).name for other in self._images}
        for file in tree.files:
            if file.stem.lower() == stem.lower() or (
                file.stem not in owned and _extends(file.stem.lower(), stem.lower())
            ):
                name = f"{wanted.stem}{file.suffix}"
                return f" There is {file.name}: rename it to {name} if it is the label of {image.name}."
        return ""


def _same(name: str) -> str:
    """A file name in one Unicode form, its suffix in lower case."""
    stem, dot, suffix = unicodedata.normalize("NFC", name).rpartition(".")
    return f"{stem}{dot}{suffix.lower()}"


def _extends(name: str, stem: str) -> bool:
    """Whether a name is another one with something added: 's00-mask' or 'mask_s00' of 's00', not 's001'."""
    rest = (
        name.removeprefix(stem)
        if name.startswith(stem)
        else name.removesuffix(stem)
        if name.endswith(stem)
        else ""
    )
    return bool(rest) and not (rest[0] if name.startswith(stem) else rest[-1]).isalnum()


def unused_labels(spec: DatasetSpec, root: str | Path, part: str) -> list[Path]:
    """The label files of a `folder`'s part that no image has."""
    root, layout = expand(root), spec.layout
    folder = root / layout.labels[0][0].replace("{split}", part).split("{stem}")[0]
    if _suffix(layout) != ".*" or not folder.is_dir():
        return []
    images = find_images(spec, root, part, wrong=[])
    labels, used, real_folder = (
        Labels(root, layout, part, images),
        set(),
        functools.cache(os.path.realpath),
    )
    for stem in images:
        with contextlib.suppress(DataError):  # told elsewhere
            label = labels.find(stem)[0]
            used.add((real_folder(label.parent), label.name))
    files = [
        file
        for file in walk(folder, nested=layout.nested).files
        if file.suffix.lower() in LABEL_SUFFIXES
    ]
    return [file for file in files if (real_folder(file.parent), file.name) not in used]


# --- What to say ------------------------------------------------------------------------------------------------------


def _official_hint(spec: DatasetSpec) -> str:
    if spec.name not in CONVERTED:
        return ""
    return "; the files as their makers distribute them go through scripts/prepare_data.py first"


def _nothing_found(spec: DatasetSpec, root: Path, split: str, part: str) -> DataError:
    """Why a split is empty."""
    folder, (_, others, _) = _part_files(spec.layout, root, part)
    pattern = spec.layout.images.replace("{split}", part).replace("{stem}", "*")
    known = " ".join(IMAGE_SUFFIXES) if pattern.endswith(".*") else pattern.rsplit("/", 1)[-1]
    if folder.is_dir():
        there = f"it holds {first_names(folder, others)}" if others else "it is empty"
        return DataError(
            f"no image of split '{split}' there ({there})",
            file=folder,
            hint=f"expected files {known}",
        )
    other = (
        " (a part of another split will do: train_split='train[:80%]' with val_split='train[80%:]')"
        if split == "val"
        else ""
    )
    put = f"put the images of split '{split}' there, or set config.dataset.root, train_split or val_split{other}"
    return DataError(
        "no such folder",
        file=folder,
        hint=f"{put}{_official_hint(spec)}.{_similar_folder(root, folder)}",
    )


def _similar_folder(root: Path, folder: Path) -> str:
    """' There is .../Images: rename it to images.', '' if no name beside the missing folder is like it."""
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
    near = [
        other for other in there if other.startswith(name) or name.startswith(other)
    ] or difflib.get_close_matches(name, there, 1)
    return (
        f" There is {there[near[0]]}: if it is this one, rename it to {missing.name}."
        if near
        else ""
    )
