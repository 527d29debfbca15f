"""What a data set is: its classes, palette, label map and the layout of its files."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from jaxseg.config.defaults import IMAGENET
from jaxseg.constants import IGNORE


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where image/label pairs lie below a root.

    images: pattern with {split} and {stem}; a suffix `.*` stands for every image format. labels: (pattern, label map)
    in order of preference, the first that exists counts. listing: a file with one stem a line, '' to take all files.
    splits: (our name, the folders or listings it is made of); other names stand for themselves.
    nested: {stem} may hold folders.
    """

    images: str
    labels: tuple[tuple[str, str], ...]
    listing: str = ""
    splits: tuple[tuple[str, tuple[str, ...]], ...] = ()
    nested: bool = False

    def parts(self, split: str) -> tuple[str, ...]:
        """The data set's own names for `split`."""
        return dict(self.splits).get(split, (split,))

    def lies_in(self, root: Path) -> bool:
        """Whether the folder of a training or validation split's images is there."""
        folders = (
            self.images.split("{stem}")[0].replace("{split}", part)
            for split in ("train", "val")
            for part in self.parts(split)
        )
        return any((root / folder).is_dir() for folder in folders)


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """A data set: classes, RGB palette, label map of its official label files, and image statistics (RGB, 0..255).

    An id that is not in the label map is an error, 255 excepted, which is always ignored. `colors`: RGB of each class
    in colour labels, () if such labels cannot be read; `ignored_colors`: those that mean 255. official_ids: what stands for each class
    in files for the data set's benchmark, () for the class numbers themselves. label_ranges: (first, last, class or 255) of long ranges
    of ids, both ends within, ascending and without ids in common with each other or with `label_map`. explicit_map: whether somebody
    wrote down what the ids stand for, as in label_map.txt, rather than the order of the classes saying it.
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
    official_ids: tuple[int, ...] = ()
    label_ranges: tuple[tuple[int, int, int], ...] = ()
    explicit_map: bool = False

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def to_json(self) -> str:
        """dataset.json of a workdir."""
        facts = dataclasses.asdict(self)
        del facts["layout"]
        facts["label_map"] = {str(raw): index for raw, index in self.label_map.items()}
        return json.dumps(facts, indent=1)
