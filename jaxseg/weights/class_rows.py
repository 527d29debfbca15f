"""Classifiers of one run in another: their rows found by shape and carried over by the names of the classes."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from jaxseg import models


@dataclasses.dataclass(frozen=True)
class Classes:
    """A model's class names, in order, and a function that gives the axes of them in its variables (see find_axes)."""

    names: tuple[str, ...]
    axes: Callable[[], Mapping[str, Sequence[int]]]


def find_axes(
    config: ConfigDict, image_shape: tuple[int, int, int, int]
) -> dict[str, tuple[int, ...]]:
    """The axes that grow with the number of classes, of every variable that has some: {'params/a/b/kernel': (3,)}.

    On such an axis the classes come last; before them may stand features (PointRend's layers read both).

    Args:
        config: config.model.
        image_shape: [B, H, W, C] of images that the model takes.
    """
    trees = (
        models.variable_shapes(
            models.create_model(config, num_classes=config.num_classes + more), image_shape
        )
        for more in (0, 1)
    )
    shapes, larger = (flatten_dict(tree, sep="/") for tree in trees)
    grown = {
        path: [a != b for a, b in zip(leaf.shape, larger[path].shape)]
        for path, leaf in shapes.items()
    }
    return {path: tuple(np.flatnonzero(axes).tolist()) for path, axes in grown.items() if any(axes)}


def carry_rows(
    source: Mapping,
    fresh: Mapping,
    axes: Mapping[str, Sequence[int]],
    theirs: Sequence[str],
    ours: Sequence[str],
) -> dict[str, Any]:
    """`source` with its classifiers as a model of the classes `ours` has them.

    Args:
        source: variables of a model of the classes `theirs`.
        fresh: variables of the model of the classes `ours`, for classes that the source lacks.
        axes: as find_axes gives them.
        theirs: class names of the source, in order.
        ours: class names wanted, in order.
    """
    old, new = flatten_dict(dict(source), sep="/"), flatten_dict(dict(fresh), sep="/")
    common = [name for name in ours if name in theirs]
    for path, where in axes.items():
        if path not in old or path not in new:
            continue
        taken, value = np.asarray(old.pop(path)), np.array(new[path])
        if common and _rest(taken, where, theirs) == _rest(value, where, ours):
            rows = _cells(taken.shape, where, common, theirs)
            value[_cells(value.shape, where, common, ours)] = taken[rows]
            old[path] = value  # else the layer is another one, and stays fresh
    return unflatten_dict(old, sep="/")


def _rest(value: np.ndarray, where: Sequence[int], names: Sequence[str]) -> list[int]:
    """The shape without the classes: what must be the same on both sides."""
    return [size - len(names) if axis in where else size for axis, size in enumerate(value.shape)]


def resized(variables: Mapping, axes: Mapping[str, Sequence[int]], more: int) -> dict[str, Any]:
    """Zeros of the shapes that `variables` would have with so many more classes."""
    flat = {}
    for path, leaf in flatten_dict(dict(variables), sep="/").items():
        grown = axes.get(path, ())
        shape = [size + more * (axis in grown) for axis, size in enumerate(np.shape(leaf))]
        flat[path] = np.broadcast_to(np.float32(0), shape)
    return unflatten_dict(flat, sep="/")


def _cells(
    shape: Sequence[int], where: Sequence[int], chosen: Sequence[str], names: Sequence[str]
) -> tuple[np.ndarray, ...]:
    """An index of the chosen classes, in the order chosen, along the axes `where`, and of all else along the others."""
    rows = [names.index(name) for name in chosen]
    ends = (
        [*range(size - len(names)), *(size - len(names) + row for row in rows)]
        if axis in where
        else range(size)
        for axis, size in enumerate(shape)
    )
    return np.ix_(*ends)


def summary(theirs: Sequence[str], ours: Sequence[str]) -> str:
    """How many of the classes come over, for people."""
    fresh = [name for name in ours if name not in theirs]
    listed = ", ".join(fresh[:4]) + (f" and {len(fresh) - 4} more" if len(fresh) > 4 else "")
    return f"{len(ours) - len(fresh)} of {len(ours)} rows{f', new: {listed}' if fresh else ''}"
