"""Reading: decode pairs of image and label, apply the label map. Whatever is wrong is a DataError naming the file.

A source has len, `spec`, `names` (file stems), `files` and `label_files` (of records: names again), `read(i)` -> (image [H, W, C],
label uint8 [H, W] of classes and 255, which is where the image holds no data, too), `read_image(i)`, `read_decoded(i)` with what is missing,
`read_label(i)`, `header(i)` of the image, and `fingerprint()`, which changes with the labels.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jaxseg.data.catalog import label_map
from jaxseg.data.decode import (
    Decoded,
    Header,
    ImageOptions,
    decode,
    decode_label,
    inspect_image,
    join_pair,
    make_table,
    map_label,
)
from jaxseg.data.decode.images import MAX_PIXELS, RGB
from jaxseg.data.sources.pairs import Pair, find_pairs
from jaxseg.data.spec import DatasetSpec
from jaxseg.errors import DataError
from jaxseg.files import cache_dir

SPLIT = re.compile(
    r"(?P<name>[^\[\]*+]+)(?P<slice>\[(?P<first>\d*%?):(?P<last>\d*%?)\])?(\*(?P<times>[1-9]\d*))?"
)


class Source(Protocol):
    """What the pipeline reads from; see the module's docstring."""

    spec: DatasetSpec
    names: Sequence[str]
    files: Sequence[str]
    label_files: Sequence[str]

    def __len__(self) -> int: ...
    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]: ...
    def read_decoded(self, index: int) -> Decoded: ...
    def read_image(self, index: int) -> np.ndarray: ...
    def read_label(self, index: int) -> np.ndarray: ...
    def header(self, index: int) -> Header: ...
    def fingerprint(self) -> str: ...


# --- Sources ----------------------------------------------------------------------------------------------------------


class Files:
    """Pairs of files, read in place; `options` say how the images are read."""

    def __init__(self, spec: DatasetSpec, pairs: Sequence[Pair], options: ImageOptions = RGB):
        self.spec, self.pairs, self.options = spec, pairs, options
        self.names = [pair.name for pair in pairs]
        self.files = [str(pair.image) for pair in pairs]
        self.label_files = [str(pair.label) for pair in pairs]
        self._tables = {
            ids: make_table(*_ids_of(spec, ids)) for ids in {pair.ids for pair in pairs}
        }

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """(image, label); DataError if one is damaged, they differ in size, or an id is unknown."""
        pair = self.pairs[index]
        return join_pair(
            self.read_decoded(index),
            self.read_label(index),
            self.options.fill,
            pair.image,
            pair.label,
        )

    def read_decoded(self, index: int) -> Decoded:
        return decode(_read_bytes(self.pairs[index].image), self.pairs[index].image, self.options)

    def read_image(self, index: int) -> np.ndarray:
        return self.read_decoded(index).filled(self.options.fill)

    def read_label(self, index: int) -> np.ndarray:
        pair = self.pairs[index]
        ids = decode_label(
            _read_bytes(pair.label), pair.label, self.spec, max_pixels=self.options.max_pixels
        )
        return map_label(ids, self._tables[pair.ids], self.spec, pair.label)

    def header(self, index: int) -> Header:
        return inspect_image(
            self.pairs[index].image,
            self.pairs[index].image,
            self.options.channels,
            max_pixels=self.options.max_pixels,
        )

    def fingerprint(self) -> str:
        """Changes with the label files and the label map."""
        stats = ((pair.label, pair.label.stat()) for pair in self.pairs)
        return _hash(
            [(str(file), stat.st_size, stat.st_mtime_ns) for file, stat in stats], self.spec
        )


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

    def read_decoded(self, index: int) -> Decoded:
        return self._at(index, "read_decoded")

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


def _ids_of(
    spec: DatasetSpec, name: str
) -> tuple[Mapping[int, int], tuple[tuple[int, int, int], ...]]:
    """The label map of this name, and its ranges; that of the official labels, the layout's last, is the spec's own."""
    own = spec.layout.labels[-1][1]
    if name == own:
        return spec.label_map, spec.label_ranges
    moved = {
        index: spec.label_map[raw] for raw, index in label_map(own, spec.num_classes).items()
    }  # where classes are reordered
    return {
        raw: moved.get(index, index) for raw, index in label_map(name, spec.num_classes).items()
    }, ()


def _read_bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(
            f"{file}: cannot be read ({error.strerror}); restore it, or remove image and label."
        ) from None


def split_names(split: str) -> list[str]:
    """The plain names in a split: 'train[:4]+extra*2' -> ['train', 'extra']. Raises DataError."""
    return [part["name"] for part in parse_split(split)]


def parse_split(split: str) -> list[re.Match]:
    """The parts of a split, each with name, first, last and times. Raises DataError."""
    parts = [SPLIT.fullmatch(part.strip()) for part in split.split("+")]
    if not all(parts):
        raise DataError(
            f"split '{split}': write a name, a slice 'train[:4]', a repetition 'train*3', or several joined by '+'."
        )
    return parts


def guess_channels(source: Source) -> int:
    """How the images of a source want to be read: 3, or as many channels as the first one has beyond RGB and transparency."""
    header = source.header(0)
    return (
        header.channels
        if header.channels > 4 or (header.channels in (2, 4) and not header.alpha)
        else 3
    )


def open_source(
    spec: DatasetSpec, root: str | Path, split: str, *, channels: int = 3, source: str = "files", nodata: Sequence[Any] = (),
    max_pixels: int = MAX_PIXELS, fill: Sequence[float] = (),
) -> Source:  # fmt: skip
    """The pairs of a split, or of several: 'train+val', 'train[:4]', 'train[100:]+extra*3' (extra three times). Raises DataError.

    source: 'files' in place, or 'tfds' (whose own split names may be used). channels, nodata, max_pixels, fill: see ImageOptions. `shapes` is written into the user's cache first.
    """
    parts, options = (
        parse_split(split),
        ImageOptions(channels, tuple(nodata), max_pixels, tuple(fill)),
    )
    sources = [_open_part(spec, root, part["name"], options, source) for part in parts]
    if len(parts) == 1 and split == parts[0]["name"]:
        return sources[0]
    places = []
    for number, (part, opened) in enumerate(zip(parts, sources)):
        ends = (_place(part[key], len(opened)) for key in ("first", "last"))
        chosen = range(len(opened))[slice(*ends)] if part["slice"] else range(len(opened))
        places += [(number, index) for index in chosen] * int(part["times"] or 1)
        if not chosen:
            raise DataError(
                f"split '{split}': {part[0]} is empty, as {part['name']} has {len(opened)} samples."
            )
    return Joined(sources, places)


def _place(text: str | None, count: int) -> int | None:
    """'12' -> 12, '25%' -> a quarter of `count`, nothing -> None."""
    if text and text.endswith("%") and int(text[:-1]) > 100:
        raise DataError(f"a split's slice cannot end at {text}; write at most 100%.")
    return (
        None
        if not text
        else round(count * int(text[:-1]) / 100)
        if text.endswith("%")
        else int(text)
    )


def _open_part(
    spec: DatasetSpec, root: str | Path, split: str, options: ImageOptions, source: str
) -> Source:
    from jaxseg.data.sources import records, shapes

    if spec.name == "shapes":
        return records.open_records(spec, shapes.prepare(cache_dir() / "data"), split, options)
    if source == "tfds":
        return records.open_records(spec, root, split, options)
    return Files(spec, find_pairs(spec, root, split), options)
