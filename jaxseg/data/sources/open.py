"""Opening a split of a data set, wherever it is stored."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxseg.data.decode import ImageOptions
from jaxseg.data.decode.images import MAX_PIXELS
from jaxseg.data.sources import shapes
from jaxseg.data.sources.base import ConcatSource, Source, parse_split, select
from jaxseg.data.sources.folder import FolderSource
from jaxseg.data.sources.pairs import find_pairs
from jaxseg.data.sources.records import open_records
from jaxseg.data.spec import DatasetSpec
from jaxseg.files import cache_dir


def open_source(
    spec: DatasetSpec,
    root: str | Path,
    split: str,
    *,
    channels: int = 3,
    source: str = "files",
    nodata: Sequence[Any] = (),
    max_pixels: int = MAX_PIXELS,
    fill: Sequence[float] = (),
) -> Source:
    """Open a split, or several: 'train+val', 'train[:4]', 'train[100:]+extra*3'.

    The data set `shapes` is written into the user's cache first.

    Args:
        spec: The data set.
        root: Its folder.
        split: Names of splits, sliced, repeated and joined.
        channels: Channels to read the images with; see `ImageOptions`.
        source: "files" in place, or "tfds", whose own names of splits may be used.
        nodata: Values that stand for missing data; see `ImageOptions`.
        max_pixels: Largest number of pixels of an image or label, 0 for no limit.
        fill: [C] values for missing data, () for the mean of the image.

    Raises:
        DataError: Files are missing or do not fit together, or the split is malformed or empty.
    """
    parts = parse_split(split)
    options = ImageOptions(channels, tuple(nodata), max_pixels, tuple(fill))
    sources = [_open_part(spec, root, part["name"], options, source) for part in parts]
    if len(parts) == 1 and split == parts[0]["name"]:
        return sources[0]
    places: list[tuple[int, int]] = []
    for number, (part, opened) in enumerate(zip(parts, sources)):
        places += [(number, index) for index in select(part, len(opened), split)]
    return ConcatSource(sources, places)


def _open_part(
    spec: DatasetSpec, root: str | Path, split: str, options: ImageOptions, source: str
) -> Source:
    """Open a split by its plain name."""
    if spec.name == "shapes":
        return open_records(spec, shapes.prepare(cache_dir() / "data"), split, options)
    if source == "tfds":
        return open_records(spec, root, split, options)
    return FolderSource(spec, find_pairs(spec, root, split), options)
