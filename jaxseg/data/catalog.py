"""Data sets by name: `get_spec` describes any of them, `load_spec` the one of an experiment."""

from pathlib import Path

from jaxseg.config.schema import DatasetConfig
from jaxseg.data import builtin
from jaxseg.data.builtin import list_datasets as list_datasets
from jaxseg.data.class_order import match_classes
from jaxseg.data.folder_spec import read_folder_spec
from jaxseg.data.sources import records, shapes
from jaxseg.data.spec import DatasetSpec
from jaxseg.files import expand


def get_spec(name: str, root: str | Path = "", source: str = "files") -> DatasetSpec:
    """Return the spec of a data set.

    Args:
        name: `folder`, `shapes` or a built-in data set (`list_datasets`).
        root: Folder of the data set. A `folder` lists its classes there; other data sets choose
            their layout by what it holds.
        source: "files", or "tfds" for the prepared data set below `root`, whose labels may hold
            other values.

    Raises:
        DataError: The name is unknown, or the folder has no usable classes.txt.
    """
    root = str(root) and expand(root)
    if name == "shapes":
        label_map = builtin.named_label_map("identity", len(shapes.CLASSES))
        return DatasetSpec(name, shapes.CLASSES, shapes.PALETTE, label_map)
    if source == "tfds":
        return records.get_spec(name, root)
    return read_folder_spec(root) if name == "folder" else builtin.builtin_spec(name, root)


def load_spec(dataset: DatasetConfig) -> DatasetSpec:
    """Return the spec of an experiment's data set, its classes in the order of the run.

    Raises:
        DataError: The data set cannot be read, or its classes are not those of the run
            (`dataset.classes`).
    """
    spec = get_spec(dataset.name, dataset.root, dataset.source)
    return match_classes(spec, dataset.classes, dataset.match_classes, "dataset.root", dataset.root)
