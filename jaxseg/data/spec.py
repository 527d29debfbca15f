"""Descriptions of data sets: classes, palette, label map and the layout of the files.

Plain frozen dataclasses that need no other module of `jaxseg.data`, so every other package may
import this one.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxseg.config.defaults import IMAGENET
from jaxseg.constants import IGNORE

LabelRange = tuple[int, int, int]  # first and last label value, and their class or 255


@dataclasses.dataclass(frozen=True)
class DatasetRef:
    """Where a data set is found: the arguments of `catalog.get_spec`.

    Attributes:
        name: `folder`, `shapes` or a built-in data set.
        root: Folder of the data set; "" for `shapes`.
        source: "files", or "tfds" for a prepared data set.
    """

    name: str
    root: str = ""
    source: str = "files"


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the image and label files of a data set are, relative to its root.

    Attributes:
        images: Pattern with {split} and {stem}; the suffix `.*` stands for every image format.
        labels: (pattern, name of the label map) in order of preference; the first that exists is
            read.
        listing: Pattern of a file with one stem a line; "" to take every file.
        splits: (our name, the data set's folders or listings); a split that is not here keeps its
            name.
        nested: Whether {stem} may contain folders.
    """

    images: str
    labels: tuple[tuple[str, str], ...]
    listing: str = ""
    splits: tuple[tuple[str, tuple[str, ...]], ...] = ()
    nested: bool = False

    def parts(self, split: str) -> tuple[str, ...]:
        """Return the data set's own names for `split`."""
        return dict(self.splits).get(split, (split,))

    def exists_in(self, root: Path) -> bool:
        """Return whether `root` contains the images of the training or validation split."""
        folders = (
            self.images.split("{stem}")[0].replace("{split}", part)
            for split in ("train", "val")
            for part in self.parts(split)
        )
        return any((root / folder).is_dir() for folder in folders)


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """A data set: its classes, colours, label map and image statistics.

    Attributes:
        name: `folder`, `shapes` or a built-in data set.
        classes: Class names; class k has index k.
        palette: RGB of each class, 0..255, for pictures.
        label_map: Raw label value to class index or 255. A value that is missing here is an error,
            except 255, which is always ignored.
        layout: Where the files are; None if the data are records.
        ignore_index: Label of pixels that count nowhere.
        image_mean: Mean of each channel, in the images' own units (0..255 for 8-bit RGB).
        image_std: Standard deviation of each channel.
        colors: RGB of each class in colour labels, () if colour labels cannot be read.
        ignored_colors: RGB in colour labels that stands for 255.
        submission_ids: Value of each class in files for the data set's benchmark server, () for the
            class index.
        label_ranges: (first, last, class or 255) of long ranges of label values, both ends
            included, ascending and disjoint from each other and from `label_map`.
        explicit_map: Whether the meaning of the label values is written down (as in label_map.txt)
            rather than derived from the order of the classes.
    """

    name: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    label_map: Mapping[int, int]
    layout: Layout | None = None
    ignore_index: int = IGNORE
    image_mean: tuple[float, ...] = IMAGENET["image_mean"]
    image_std: tuple[float, ...] = IMAGENET["image_std"]
    colors: tuple[tuple[int, int, int], ...] = ()
    ignored_colors: tuple[tuple[int, int, int], ...] = ()
    submission_ids: tuple[int, ...] = ()
    label_ranges: tuple[LabelRange, ...] = ()
    explicit_map: bool = False

    @property
    def num_classes(self) -> int:
        """Number of classes K, 255 not counted."""
        return len(self.classes)

    def with_statistics(self, mean: Sequence[float], std: Sequence[float]) -> "DatasetSpec":
        """Return a copy with these image statistics, one number per channel."""
        return dataclasses.replace(self, image_mean=tuple(mean), image_std=tuple(std))

    def to_json(self) -> str:
        """Return the text of a workdir's dataset.json."""
        fields = dataclasses.asdict(self)
        del fields["layout"]
        fields["label_map"] = {str(raw): index for raw, index in self.label_map.items()}
        return json.dumps(fields, indent=1)
