"""Reading: find image/label pairs, decode them, apply the label map. Whatever is wrong is a DataError naming the file.

A source has len, `spec`, `names` (file stems), `files` and `label_files` (of records: names again), `read(i)` -> (image [H, W, C],
label uint8 [H, W] of classes and 255), `read_image(i)`, `read_label(i)`, `header(i)` of the image, and `fingerprint()`, which changes with the labels.
"""

import dataclasses
import glob
import hashlib
import itertools
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jaxseg.cache import cache_dir
from jaxseg.data.datasets import DataError, DatasetSpec, Layout, label_map
from jaxseg.data.decode import Header, check_sizes, decode_image, decode_label, inspect_image, make_table, map_label

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".npy")
SPLIT = re.compile(r"(?P<name>[^\[\]*+]+)(?P<slice>\[(?P<first>\d*%?):(?P<last>\d*%?)\])?(\*(?P<times>[1-9]\d*))?")


class Source(Protocol):
    """What the pipeline reads from; see the module's docstring."""

    spec: DatasetSpec
    names: Sequence[str]
    files: Sequence[str]
    label_files: Sequence[str]

    def __len__(self) -> int: ...
    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]: ...
    def read_image(self, index: int) -> np.ndarray: ...
    def read_label(self, index: int) -> np.ndarray: ...
    def header(self, index: int) -> Header: ...
    def fingerprint(self) -> str: ...


@dataclasses.dataclass(frozen=True)
class Pair:
    """An image file, its label file, and the name of the label file's map."""

    name: str
    image: Path
    label: Path
    ids: str


# --- Finding ----------------------------------------------------------------------------------------------------------


def find_pairs(spec: DatasetSpec, root: str | Path, split: str) -> list[Pair]:
    """Every image of a split with its label, by name. Raises DataError if there is none or a label is missing."""
    if not root:
        hint = "--config.dataset.root=DIR (--config.eval.root for config.eval.dataset)"
        raise DataError(f"The data set '{spec.name}' needs its folder: {hint}.")
    root, layout, pairs = Path(root), spec.layout, []
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; set config.dataset.root to where the data set '{spec.name}' lies.")
    for part in layout.parts(split):
        images = find_images(spec, root, part)
        if not images:
            raise DataError(_nothing_found(spec, root, split, part))
        pairs += [Pair(stem, image, *find_label(root, layout, part, stem, image)) for stem, image in images.items()]
    return pairs


def find_images(spec: DatasetSpec, root: Path, part: str, shared: list[tuple[Path, str]] | None = None) -> dict[str, Path]:
    """{stem: image file} of one of a layout's parts, in the order of names. Raises DataError for what a listing has not.

    Images of one stem are an error, too, or, with `shared`, go there with what is wrong with them.
    """
    layout = spec.layout
    prefix, suffix = layout.images.replace("{split}", part).split("{stem}")
    if layout.listing:
        listing = root / layout.listing.replace("{split}", part)
        if not listing.is_file():
            raise DataError(f"{listing}: no such file; it lists the images of split '{part}', one name a line{_official_hint(spec)}.")
        stems = [line.split()[0] for line in listing.read_text().splitlines() if line.strip()]
        images = {stem: root / f"{prefix}{stem}{suffix}" for stem in stems}
        missing = next((image for image in images.values() if not image.is_file()), None)
        if missing:
            raise DataError(f"{missing}: no such file, but {listing} lists it; restore it or take it off the list.")
        return images
    suffixes = IMAGE_SUFFIXES if suffix == ".*" else (suffix,)
    folder = root / prefix
    found: dict[str, Path] = {}
    for file in _files_in(folder, layout.nested):
        ending = next((s for s in suffixes if file.name.lower().endswith(s.lower())), None)
        if ending is None or file.name.startswith("."):
            continue
        stem = str(file.relative_to(folder))[: -len(ending)]
        if stem in found:
            wrong = f"{found[stem]} and {file} have one name, so they would share one label; rename or remove one of them."
            if shared is None:
                raise DataError(wrong)
            shared.append((file, wrong))
            continue
        found[stem] = file
    return found


def _files_in(folder: Path, nested: bool) -> list[Path]:
    """The files of a folder, sorted; `nested`: of the folders in it, too, which may be links."""
    if not nested:
        return sorted(file for file in folder.glob("*") if file.is_file())
    return sorted(Path(path) / name for path, _, names in os.walk(folder, followlinks=True) for name in names)


def _official_hint(spec: DatasetSpec) -> str:
    from jaxseg.data import official

    return "; the files as their makers distribute them go through scripts/prepare_data.py first" if spec.name in official.NAMES else ""


def _nothing_found(spec: DatasetSpec, root: Path, split: str, part: str) -> str:
    """Why a split is empty."""
    layout = spec.layout
    pattern = layout.images.replace("{split}", part).replace("{stem}", "*")
    folder = (root / pattern).parent
    known = " ".join(IMAGE_SUFFIXES) if pattern.endswith(".*") else pattern.rsplit("/", 1)[-1]
    if not folder.is_dir():
        part = " (a part of another split will do: train_split='train[:80%]' with val_split='train[80%:]')" if split == "val" else ""
        return (
            f"{folder}: no such folder; put the images of split '{split}' there, or set config.dataset.root, train_split or val_split"
            f"{part}{_official_hint(spec)}."
        )
    present = sorted(file.name for file in folder.glob("*") if not file.name.startswith("."))[:3]
    there = f"it holds {', '.join(present)}, ... " if present else "it is empty"
    return f"{folder}: no image of split '{split}' there ({there.strip()}); expected files {known}."


def find_label(root: Path, layout: Layout, part: str, stem: str, image: Path) -> tuple[Path, str]:
    candidates = [(root / pattern.replace("{split}", part).replace("{stem}", stem), ids) for pattern, ids in layout.labels]
    for file, ids in candidates:
        if present := _in_any_case(file):
            return present, ids
    wanted = candidates[0][0] if layout.images.endswith(".*") else " or ".join(str(file) for file, _ in candidates)
    similar = sorted(file.name for file in candidates[0][0].parent.glob(f"{glob.escape(Path(stem).name)}.*"))
    lossy = ", not compressed with loss" if similar and similar[0].lower().endswith((".jpg", ".jpeg")) else ""
    hint = f" There is {similar[0]}: labels must be PNG, TIFF, BMP, GIF or NPY{lossy}." if similar else ""
    raise DataError(f"{image}: its label {wanted} is missing; add it, or take the image out.{hint}")


def _in_any_case(file: Path) -> Path | None:
    """The file of this name, its suffix in lower or upper case or mixed."""
    endings = itertools.product(*zip(file.suffix.lower(), file.suffix.upper(), strict=True))
    candidates = (file, *(file.with_suffix("".join(ending)) for ending in endings))
    return next((candidate for candidate in candidates if candidate.is_file()), None)


# --- Sources ----------------------------------------------------------------------------------------------------------


class Files:
    """Pairs of files, read in place as images of so many `channels`."""

    def __init__(self, spec: DatasetSpec, pairs: Sequence[Pair], channels: int = 3):
        self.spec, self.pairs, self.channels = spec, pairs, channels
        self.names = [pair.name for pair in pairs]
        self.files = [str(pair.image) for pair in pairs]
        self.label_files = [str(pair.label) for pair in pairs]
        self._tables = {ids: make_table(_ids_of(spec, ids)) for ids in {pair.ids for pair in pairs}}

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """(image, label); DataError if one is damaged, they differ in size, or an id is unknown."""
        pair = self.pairs[index]
        image, label = self.read_image(index), self.read_label(index)
        check_sizes(image.shape[:2], label.shape, pair.image, pair.label)
        return image, label

    def read_image(self, index: int) -> np.ndarray:
        return decode_image(_read_bytes(self.pairs[index].image), self.pairs[index].image, self.channels)

    def read_label(self, index: int) -> np.ndarray:
        pair = self.pairs[index]
        ids = decode_label(_read_bytes(pair.label), pair.label, self.spec)
        return map_label(ids, self._tables[pair.ids], self.spec, pair.label)

    def header(self, index: int) -> Header:
        return inspect_image(self.pairs[index].image, self.pairs[index].image, self.channels)

    def fingerprint(self) -> str:
        """Changes with the label files and the label map."""
        stats = ((pair.label, pair.label.stat()) for pair in self.pairs)
        return _hash([(str(file), stat.st_size, stat.st_mtime_ns) for file, stat in stats], self.spec)


class Joined:
    """Some samples of several sources, in a given order: slices, repetitions and sums of splits and data sets."""

    def __init__(self, sources: Sequence[Source], places: Sequence[tuple[int, int]]):
        self.spec, self._sources, self._places = sources[0].spec, sources, places
        self.names = [sources[s].names[i] for s, i in places]
        self.files = [sources[s].files[i] for s, i in places]
        self.label_files = [sources[s].label_files[i] for s, i in places]

    def __len__(self) -> int:
        return len(self._places)

    def _at(self, index: int, method: str) -> Any:
        source, place = self._places[index]
        return getattr(self._sources[source], method)(place)

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self._at(index, "read")

    def read_image(self, index: int) -> np.ndarray:
        return self._at(index, "read_image")

    def read_label(self, index: int) -> np.ndarray:
        return self._at(index, "read_label")

    def header(self, index: int) -> Header:
        return self._at(index, "header")

    def fingerprint(self) -> str:
        return _hash([source.fingerprint() for source in self._sources], self._places)


def _hash(*facts: Any) -> str:
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _ids_of(spec: DatasetSpec, name: str) -> Mapping[int, int]:
    """The label map of this name; that of the official labels, the layout's last, is the spec's own."""
    own = spec.layout.labels[-1][1]
    if name == own:
        return spec.label_map
    moved = {index: spec.label_map[raw] for raw, index in label_map(own, spec.num_classes).items()}  # where classes are reordered
    return {raw: moved.get(index, index) for raw, index in label_map(name, spec.num_classes).items()}


def _read_bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); restore it, or remove image and label.") from None


def split_names(split: str) -> list[str]:
    """The plain names in a split: 'train[:4]+extra*2' -> ['train', 'extra']. Raises DataError."""
    return [part["name"] for part in parse_split(split)]


def parse_split(split: str) -> list[re.Match]:
    """The parts of a split, each with name, first, last and times. Raises DataError."""
    parts = [SPLIT.fullmatch(part.strip()) for part in split.split("+")]
    if not all(parts):
        raise DataError(f"split '{split}': write a name, a slice 'train[:4]', a repetition 'train*3', or several joined by '+'.")
    return parts


def guess_channels(source: Source) -> int:
    """How the images of a source want to be read: 3, or as many channels as the first one has beyond RGB and transparency."""
    header = source.header(0)
    return header.channels if header.channels > 4 or (header.channels in (2, 4) and not header.alpha) else 3


def open_source(spec: DatasetSpec, root: str | Path, split: str, *, channels: int = 3, source: str = "files") -> Source:
    """The pairs of a split, or of several: 'train+val', 'train[:4]', 'train[100:]+extra*3' (extra three times). Raises DataError.

    source: 'files' in place, or 'tfds' (whose own split names may be used). `shapes` is written into the user's cache first.
    """
    parts = parse_split(split)
    sources = [_open_part(spec, root, part["name"], channels, source) for part in parts]
    if len(parts) == 1 and split == parts[0]["name"]:
        return sources[0]
    places = []
    for number, (part, opened) in enumerate(zip(parts, sources)):
        ends = (_place(part[key], len(opened)) for key in ("first", "last"))
        chosen = range(len(opened))[slice(*ends)] if part["slice"] else range(len(opened))
        places += [(number, index) for index in chosen] * int(part["times"] or 1)
        if not chosen:
            raise DataError(f"split '{split}': {part[0]} is empty, as {part['name']} has {len(opened)} samples.")
    return Joined(sources, places)


def _place(text: str | None, count: int) -> int | None:
    """'12' -> 12, '25%' -> a quarter of `count`, nothing -> None."""
    if text and text.endswith("%") and int(text[:-1]) > 100:
        raise DataError(f"a split's slice cannot end at {text}; write at most 100%.")
    return None if not text else round(count * int(text[:-1]) / 100) if text.endswith("%") else int(text)


def _open_part(spec: DatasetSpec, root: str | Path, split: str, channels: int, source: str) -> Source:
    from jaxseg.data import records, shapes

    if spec.name == "shapes":
        return records.open_records(spec, shapes.prepare(cache_dir() / "data"), split, channels)
    if source == "tfds":
        return records.open_records(spec, root, split, channels)
    return Files(spec, find_pairs(spec, root, split), channels)
