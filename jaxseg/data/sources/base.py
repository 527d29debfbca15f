"""The `Source` protocol, the grammar of splits, and sources made of other sources."""

import hashlib
import re
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from jaxseg.data.decode import Decoded, Header
from jaxseg.data.spec import DatasetSpec
from jaxseg.errors import DataError

SPLIT = re.compile(
    r"(?P<name>[^\[\]*+]+)(?P<slice>\[(?P<first>\d*%?):(?P<last>\d*%?)\])?(\*(?P<times>[1-9]\d*))?"
)


class Source(Protocol):
    """Random access to pairs of image and label.

    Anything wrong with a file is a DataError that names it.

    Attributes:
        spec: The data set.
        names: Name of each sample: the file's stem, or the record's name.
        files: Image file of each sample; of records, names again.
        label_files: Label file of each sample; of records, names again.
    """

    spec: DatasetSpec
    names: list[str]
    files: list[str]
    label_files: list[str]

    def __len__(self) -> int:
        """Return the number of samples."""

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return image [H, W, C] and label uint8 [H, W].

        The label is also 255 where the image has no data.

        Raises:
            DataError: A file is damaged, the two differ in size, or a label value is unknown.
        """

    def read_decoded(self, index: int) -> Decoded:
        """Return the image as it is in its file, with a mask of missing data."""

    def read_image(self, index: int) -> np.ndarray:
        """Return the image [H, W, C], missing data filled in."""

    def read_label(self, index: int) -> np.ndarray:
        """Return the label uint8 [H, W] of class indices and 255."""

    def header(self, index: int) -> Header:
        """Return the size and the type of the image, without decoding it."""

    def fingerprint(self) -> str:
        """Return a hash that changes with the label files and the label map."""


class ConcatSource:
    """Selected samples of several sources, in a given order.

    It stands for slices, repetitions and sums of splits and data sets.
    """

    def __init__(self, sources: Sequence[Source], places: Sequence[tuple[int, int]]):
        """Create a source whose sample i is number `places[i][1]` of `sources[places[i][0]]`."""
        self.spec = sources[0].spec
        self._sources, self._places = sources, places
        self.names = [sources[s].names[i] for s, i in places]
        self.files = [sources[s].files[i] for s, i in places]
        self.label_files = [sources[s].label_files[i] for s, i in places]

    def __len__(self) -> int:
        return len(self._places)

    def _at(self, index: int) -> tuple[Source, int]:
        """Return the source of a sample and its index there."""
        source, place = self._places[index]
        return self._sources[source], place

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """See `Source.read`."""
        source, place = self._at(index)
        return source.read(place)

    def read_decoded(self, index: int) -> Decoded:
        """See `Source.read_decoded`."""
        source, place = self._at(index)
        return source.read_decoded(place)

    def read_image(self, index: int) -> np.ndarray:
        """See `Source.read_image`."""
        source, place = self._at(index)
        return source.read_image(place)

    def read_label(self, index: int) -> np.ndarray:
        """See `Source.read_label`."""
        source, place = self._at(index)
        return source.read_label(place)

    def header(self, index: int) -> Header:
        """See `Source.header`."""
        source, place = self._at(index)
        return source.header(place)

    def fingerprint(self) -> str:
        """See `Source.fingerprint`."""
        return hash_facts([source.fingerprint() for source in self._sources], self._places)


def hash_facts(*facts: object) -> str:
    """Return a hash of the facts' repr, the same in every process."""
    return hashlib.sha256(repr(facts).encode()).hexdigest()


# --- Splits ---


def parse_split(split: str) -> list[re.Match]:
    """Return the parts of a split such as 'train[:4]+extra*2'.

    Each is a match with the groups name, slice, first, last and times.

    Raises:
        DataError: The split is malformed.
    """
    parts = [SPLIT.fullmatch(part.strip()) for part in split.split("+")]
    found = [part for part in parts if part]
    if len(found) < len(parts):
        raise DataError(
            f"split '{split}' is malformed",
            hint="write a name, a slice 'train[:4]', a repetition 'train*3', or several joined by "
            "'+'",
        )
    return found


def split_names(split: str) -> list[str]:
    """Return the plain names in a split: 'train[:4]+extra*2' -> ['train', 'extra'].

    Raises:
        DataError: The split is malformed.
    """
    return [part["name"] for part in parse_split(split)]


def select(part: re.Match, count: int, split: str) -> list[int]:
    """Return the indices of the samples that a part of a split selects.

    Args:
        part: From `parse_split`.
        count: Number of samples of the part's plain split.
        split: The whole split, for the error.

    Raises:
        DataError: It selects none.
    """
    chosen = range(count)
    if part["slice"]:
        chosen = chosen[_place(part["first"], count) : _place(part["last"], count)]
    if not chosen:
        raise DataError(
            f"split '{split}': {part[0]} is empty, as {part['name']} has {count} samples"
        )
    return list(chosen) * int(part["times"] or 1)


def _place(text: str | None, count: int) -> int | None:
    """Return the bound of a slice: '12' -> 12, '25%' -> a quarter of `count`, nothing -> None."""
    if not text:
        return None
    if not text.endswith("%"):
        return int(text)
    percent = int(text[:-1])
    if percent > 100:
        raise DataError(f"a split's slice cannot end at {text}", hint="write at most 100%")
    return round(count * percent / 100)


def guess_channels(source: Source) -> int:
    """Return the number of channels to read the images of a source with.

    It is 3, or the number that the first image has if that is not grey or RGB, with or without
    transparency.
    """
    header = source.header(0)
    if header.channels > 4 or (header.channels in (2, 4) and not header.alpha):
        return header.channels
    return 3
