"""The order of the classes: data in another order than the run's are refused, or mapped by name.

The order of a run is `dataset.classes`, filled in when the experiment is resolved and kept in the
workdir. Exports of one annotation project often differ in their order, and nothing but the list of
names reveals it.
"""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

from jaxseg.data.folder_spec import CLASSES_FILE, read_folder_spec
from jaxseg.data.spec import DatasetSpec
from jaxseg.errors import DataError
from jaxseg.files import expand

log = logging.getLogger(__name__)


def match_classes(
    spec: DatasetSpec, classes: Sequence[str], how: str, field: str, root: str | Path = ""
) -> DatasetSpec:
    """Return a data set's spec with the classes of a run, in the order of the run.

    Args:
        spec: The data set's own spec.
        classes: Class names of the run; () accepts any.
        how: "order", or "name" to map the labels where the same names are in another order.
        field: Config field that names the data set, for the error.
        root: Folder of the data set, for the error.

    Raises:
        DataError: The classes differ; the message gives the first index at which they do, and both
            names.
    """
    classes = tuple(classes)
    if not classes or spec.classes == classes:
        return spec
    same_names = set(spec.classes) == set(classes)
    if how == "name" and same_names:
        return reorder(spec, classes)
    pairs = zip((*spec.classes, "absent"), (*classes, "absent"))
    number, (theirs, ours) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
    hint = "give a data set with the same classes in the same order"
    if same_names:
        hint = "config.dataset.match_classes=name maps its labels to the run's order by name"
    elif how == "name":
        odd = sorted(set(spec.classes) ^ set(classes))[0]
        hint = f"matching by name needs the same names in both; '{odd}' is in one of them only"
    raise DataError(
        f"the data set '{spec.name}' has {len(spec.classes)} classes, number {number} is "
        f"'{theirs}', but the run has {len(classes)}, number {number} is '{ours}'",
        file=_listing(spec, root),
        field=field,
        hint=hint,
    )


def reorder(spec: DatasetSpec, classes: Sequence[str]) -> DatasetSpec:
    """Return a spec with its classes in another order; labels on disk keep their values.

    Args:
        spec: The spec.
        classes: The names of its classes in the new order.
    """
    place = [spec.classes.index(name) for name in classes]
    moved = {old: new for new, old in enumerate(place)}

    def permuted(values: tuple) -> tuple:
        return tuple(values[i] for i in place) if values else values

    return dataclasses.replace(
        spec,
        classes=tuple(classes),
        label_map={raw: moved.get(index, index) for raw, index in spec.label_map.items()},
        label_ranges=tuple(
            (first, last, moved.get(index, index)) for first, last, index in spec.label_ranges
        ),
        palette=permuted(spec.palette),
        colors=permuted(spec.colors),
        submission_ids=permuted(spec.submission_ids),
    )


def _listing(spec: DatasetSpec, root: str | Path) -> str | Path:
    """Return the file that lists a data set's classes, else its folder."""
    return Path(root) / CLASSES_FILE if root and spec.name == "folder" and spec.layout else root


def root_of(path: str | Path) -> Path | None:
    """Return the `folder` data set that images to predict belong to, or None.

    It is the nearest folder above with a classes.txt, if the images are in it, in a folder of it,
    or below its images/.
    """
    path = Path(path).resolve()
    first = path if path.is_dir() else path.parent
    root = next(
        (folder for folder in (first, *first.parents) if (folder / CLASSES_FILE).is_file()), None
    )
    if root is None:
        return None
    inside = first.relative_to(root).parts
    return root if len(inside) < 2 or inside[0] == "images" else None


def prediction_classes(
    root: str | Path | None, classes: Sequence[str], how: str
) -> tuple[str, ...]:
    """Return the order of classes in which predictions on a data set are written.

    Args:
        root: The `folder` data set that the images belong to, or None.
        classes: Class names of the run.
        how: "order", or "name" to write the indices that the data set's own list gives the names.

    Raises:
        DataError: The data set has as many classes as the run and they differ, so that the two
            numberings would be confused.
    """
    classes = tuple(classes)
    if root is None or not (Path(root) / CLASSES_FILE).is_file():
        return classes
    try:
        spec = read_folder_spec(expand(root))
    except DataError as error:
        log.warning("%s; predictions have the run's numbers", error)
        return classes
    if len(spec.classes) != len(classes):
        return classes  # an unrelated data set, whose images may be shown to any model
    match_classes(spec, classes, how, "source", root)
    return spec.classes
