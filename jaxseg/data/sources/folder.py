"""Data sets of image and label files, read in place."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxseg.data.builtin import named_label_map
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
from jaxseg.data.decode.images import RGB
from jaxseg.data.sources.base import hash_facts
from jaxseg.data.sources.pairs import Pair
from jaxseg.data.spec import DatasetSpec, LabelRange
from jaxseg.errors import DataError


class FolderSource:
    """A `Source` of pairs of files."""

    def __init__(self, spec: DatasetSpec, pairs: Sequence[Pair], options: ImageOptions = RGB):
        """Create a source of `pairs`; `options` say how images are read."""
        self.spec, self.pairs, self.options = spec, pairs, options
        self.names = [pair.name for pair in pairs]
        self.files = [str(pair.image) for pair in pairs]
        self.label_files = [str(pair.label) for pair in pairs]
        self._tables = {
            name: make_table(*label_map_of(spec, name))
            for name in {pair.label_map_name for pair in pairs}
        }

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """See `Source.read`."""
        pair = self.pairs[index]
        image, label = self.read_decoded(index), self.read_label(index)
        return join_pair(image, label, self.options.fill, pair.image, pair.label)

    def read_decoded(self, index: int) -> Decoded:
        """See `Source.read_decoded`."""
        file = self.pairs[index].image
        return decode(_read_bytes(file), file, self.options)

    def read_image(self, index: int) -> np.ndarray:
        """See `Source.read_image`."""
        return self.read_decoded(index).filled(self.options.fill)

    def read_label(self, index: int) -> np.ndarray:
        """See `Source.read_label`."""
        pair, limit = self.pairs[index], self.options.max_pixels
        ids = decode_label(_read_bytes(pair.label), pair.label, self.spec, max_pixels=limit)
        return map_label(ids, self._tables[pair.label_map_name], self.spec, pair.label)

    def header(self, index: int) -> Header:
        """See `Source.header`."""
        file, options = self.pairs[index].image, self.options
        return inspect_image(file, file, options.channels, max_pixels=options.max_pixels)

    def fingerprint(self) -> str:
        """See `Source.fingerprint`."""
        stats = ((pair.label, pair.label.stat()) for pair in self.pairs)
        return hash_facts(
            [(str(file), stat.st_size, stat.st_mtime_ns) for file, stat in stats], self.spec
        )


def label_map_of(spec: DatasetSpec, name: str) -> tuple[Mapping[int, int], tuple[LabelRange, ...]]:
    """Return the label map of this name over the classes of `spec`, and its ranges.

    The map of the official labels, the last of the layout, is the spec's own; others follow its
    order of classes.

    Args:
        spec: A data set of files.
        name: Name of the label map; see `builtin.named_label_map`.
    """
    assert spec.layout is not None  # files have one
    official = spec.layout.labels[-1][1]
    if name == official:
        return spec.label_map, spec.label_ranges
    moved = {
        index: spec.label_map[raw]
        for raw, index in named_label_map(official, spec.num_classes).items()
    }
    named = named_label_map(name, spec.num_classes)
    return {raw: moved.get(index, index) for raw, index in named.items()}, ()


def _read_bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(
            f"cannot be read ({error.strerror})",
            file=file,
            hint="restore it, or remove image and label",
        ) from None
