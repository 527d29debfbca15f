"""Transfer of classifier rows between models, matched by class name."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxseg import models
from jaxseg.config.schema import ModelConfig

Axes = Mapping[str, Sequence[int]]  # {'params/a/b/kernel': axes that have one entry per class}


@dataclasses.dataclass(frozen=True)
class Classes:
    """The classes of a model.

    Attributes:
        names: Class names, in order.
        axes: Returns the axes of the variables that have one entry per class (see `find_axes`).
    """

    names: tuple[str, ...]
    axes: Callable[[], Axes]


def find_axes(
    config: ModelConfig, image_shape: tuple[int, int, int, int]
) -> dict[str, tuple[int, ...]]:
    """Find the axes of variables whose length depends on the number of classes.

    The classes are the last entries of such an axis; features may precede them, as in PointRend's
    layers, which read both.

    Args:
        config: The model's config, with its number of classes.
        image_shape: Shape (B, H, W, C) of the model's images.

    Returns:
        The axes by variable: {'params/a/b/kernel': (3,)}.
    """
    count = config.num_classes or 0

    def shapes(more: int) -> dict[str, Any]:
        model = models.create_model(config, num_classes=count + more)
        return flatten_dict(models.variable_shapes(model, image_shape), sep="/")

    larger = shapes(1)
    axes = {}
    for path, leaf in shapes(0).items():
        sizes = zip(leaf.shape, larger[path].shape, strict=True)
        grown = tuple(axis for axis, (size, more) in enumerate(sizes) if size != more)
        if grown:
            axes[path] = grown
    return axes


def carry_rows(
    source: Mapping[str, Any],
    fresh: Mapping[str, Any],
    axes: Axes,
    theirs: Sequence[str],
    ours: Sequence[str],
) -> dict[str, Any]:
    """Return `source` with its classifiers converted to the classes `ours`.

    Args:
        source: Variables of a model with the classes `theirs`.
        fresh: Variables of a model with the classes `ours`, for classes that the source lacks.
        axes: The result of `find_axes`.
        theirs: Class names of the source, in order.
        ours: Class names of the result, in order.

    Returns:
        The converted variables.
    """
    old, new = flatten_dict(dict(source), sep="/"), flatten_dict(dict(fresh), sep="/")
    common = [name for name in ours if name in theirs]
    for path, where in axes.items():
        if path not in old or path not in new:
            continue
        taken = np.asarray(old.pop(path))
        value = np.array(new[path])
        same_features = _without_classes(taken.shape, where, len(theirs)) == _without_classes(
            value.shape, where, len(ours)
        )
        if common and same_features:  # otherwise it is a different layer, which stays fresh
            rows = _index(taken.shape, where, common, theirs)
            value[_index(value.shape, where, common, ours)] = taken[rows]
            old[path] = value
    return unflatten_dict(old, sep="/")


def _without_classes(shape: Sequence[int], where: Sequence[int], classes: int) -> list[int]:
    """Return a shape without the classes in the axes `where`."""
    return [size - classes if axis in where else size for axis, size in enumerate(shape)]


def _index(
    shape: Sequence[int], where: Sequence[int], chosen: Sequence[str], names: Sequence[str]
) -> tuple[np.ndarray, ...]:
    """Index the features and the chosen classes along `where`, and all of the other axes."""
    rows = [names.index(name) for name in chosen]
    indices = []
    for axis, size in enumerate(shape):
        features = size - len(names)
        along_classes = [*range(features), *(features + row for row in rows)]
        indices.append(along_classes if axis in where else range(size))
    return np.ix_(*indices)


def resize_classes(variables: Mapping[str, Any], axes: Axes, more: int) -> dict[str, Any]:
    """Return zeros with the shapes that `variables` would have with `more` classes (or fewer)."""
    flat = {}
    for path, leaf in flatten_dict(dict(variables), sep="/").items():
        shape = list(np.shape(leaf))
        for axis in axes.get(path, ()):
            shape[axis] += more
        flat[path] = np.broadcast_to(np.float32(0), shape)
    return unflatten_dict(flat, sep="/")


def describe(theirs: Sequence[str], ours: Sequence[str]) -> str:
    """Describe how many of the classes `ours` are among `theirs`, and which are new."""
    fresh = [name for name in ours if name not in theirs]
    more = f" and {len(fresh) - 4} more" if len(fresh) > 4 else ""
    new = f", new: {', '.join(fresh[:4])}{more}" if fresh else ""
    return f"{len(ours) - len(fresh)} of {len(ours)} rows{new}"
