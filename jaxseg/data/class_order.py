"""Which class a number stands for: data that lists a run's classes in another order is refused, or mapped by name.

The order of a run is config.dataset.classes, set by `resolve` and kept in the workdir. Exports of one project often
differ in their order, and nothing else than the list of names tells.
"""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxseg.data.catalog import get_spec
from jaxseg.data.spec import DatasetSpec
from jaxseg.errors import DataError

log = logging.getLogger(__name__)

LISTING = "classes.txt"


def config_spec(data: Any) -> DatasetSpec:
    """The spec of config.dataset, its classes in the run's order. Raises DataError if they are not those."""
    spec = get_spec(data.name, data.root, data.source)
    return match_classes(
        spec, data.get("classes", ()), data.get("match_classes", "order"), "dataset.root", data.root
    )


def match_classes(
    spec: DatasetSpec, classes: Sequence[str], how: str, field: str, root: str | Path = ""
) -> DatasetSpec:
    """A data set's spec with the classes of a run, in the run's order.

    Args:
        spec: the data set's own.
        classes: the run's; () accepts any.
        how: 'order', or 'name' to map the labels where the same names stand in another order.
        field: the config field that names the data set.
        root: where it lies.

    Raises:
        DataError: the classes differ; it tells the first number that does, and both names.
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
        hint = "--config.dataset.match_classes=name maps its labels to the run's order by name"
    elif how == "name":
        odd = sorted(set(spec.classes) ^ set(classes))[0]
        hint = f"to be matched by name both need the same names; '{odd}' is in one of them only"
    raise DataError(
        f"the data set '{spec.name}' has {len(spec.classes)} classes, number {number} is '{theirs}', but the run has "
        f"{len(classes)}, number {number} is '{ours}'",
        file=_listing(spec, root), field=field, hint=hint,
    )  # fmt: skip


def reorder(spec: DatasetSpec, classes: Sequence[str]) -> DatasetSpec:
    """The spec with the same classes in another order; labels on disk stay what they are."""
    place = [spec.classes.index(name) for name in classes]
    moved = {old: new for new, old in enumerate(place)}
    return dataclasses.replace(
        spec, classes=tuple(classes), label_map={raw: moved.get(index, index) for raw, index in spec.label_map.items()},
        label_ranges=tuple((first, last, moved.get(index, index)) for first, last, index in spec.label_ranges),
        **{key: tuple(value[i] for i in place) for key in ("palette", "colors", "official_ids") if (value := getattr(spec, key))},
    )  # fmt: skip


def _listing(spec: DatasetSpec, root: str | Path) -> str | Path:
    """The file that lists a data set's classes, else its folder."""
    return Path(root) / LISTING if root and spec.name == "folder" and spec.layout else root


def root_of(path: str | Path) -> Path | None:
    """The `folder` data set that images to predict lie in: the nearest folder above with classes.txt, None if there is none.

    It counts if the images lie in it, in a folder of it, or below its images/.
    """
    path = Path(path).resolve()
    first = path if path.is_dir() else path.parent
    root = next(
        (folder for folder in (first, *first.parents) if (folder / LISTING).is_file()), None
    )
    if root is None:
        return None
    inside = first.relative_to(root).parts
    return root if len(inside) < 2 or inside[0] == "images" else None


def prediction_classes(
    root: str | Path | None, classes: Sequence[str], how: str
) -> tuple[str, ...]:
    """The order of classes in which predictions on a data set are written.

    Args:
        root: a `folder` data set that was given for prediction, or None.
        classes: the run's.
        how: 'order', or 'name' to write the numbers that the data set's own list gives the names.

    Raises:
        DataError: the data set has as many classes and they differ, so that its numbers and the run's would be confused.
    """
    classes = tuple(classes)
    if root is None or not (Path(root) / LISTING).is_file():
        return classes
    try:
        spec = get_spec("folder", root)
    except DataError as error:
        log.warning("%s; predictions have the run's numbers", error)
        return classes
    if len(spec.classes) != len(classes):
        return classes  # another data set altogether: its images may be shown to any model
    match_classes(spec, classes, how, "--input", root)
    return spec.classes
