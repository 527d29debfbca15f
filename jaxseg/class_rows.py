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
        free = [axis for axis in range(value.ndim) if axis not in where]
        skips = [(taken.shape[axis] - len(theirs), value.shape[axis] - len(ours)) for axis in where]
        fits = taken.ndim == value.ndim and all(
            taken.shape[axis] == value.shape[axis] for axis in free
        )
        if not common or not fits or any(a != b or a < 0 for a, b in skips):
            continue  # the layer is another one, and stays fresh

        value[_cells(value.shape, where, common, ours)] = taken[
            _cells(taken.shape, where, common, theirs)
        ]
        old[path] = value
    return unflatten_dict(old, sep="/")


def resized(variables: Mapping, axes: Mapping[str, Sequence[int]], more: int) -> dict[str, Any]:
    """Zeros of the shapes that `variables` would have with so many more classes."""
    flat = {
        path: np.array(np.shape(leaf))
        for path, leaf in flatten_dict(dict(variables), sep="/").items()
    }
    for path, where in axes.items():
        flat[path][list(where)] += more
    return unflatten_dict(
        {
            path: np.broadcast_to(np.float32(0), np.maximum(shape, 0))
            for path, shape in flat.items()
        },
        sep="/",
    )


def _cells(
    shape: Sequence[int], where: Sequence[int], chosen: Sequence[str], names: Sequence[str]
) -> tuple[np.ndarray, ...]:
    """An index of the chosen classes, in the order chosen, along the axes `where`, and of all else along the others."""
    rows = [names.index(name) for name in chosen]
    firsts = [
        size - len(names) if axis in where else size for axis, size in enumerate(shape)
    ]  # before the classes come features
    return np.ix_(
        *(
            [*range(first), *(first + row for row in rows)] if first < size else range(size)
            for first, size in zip(firsts, shape)
        )
    )


def summary(theirs: Sequence[str], ours: Sequence[str]) -> str:
    """How many of the classes come over, for people."""
    fresh = [name for name in ours if name not in theirs]
    listed = ", ".join(fresh[:4]) + (f" and {len(fresh) - 4} more" if len(fresh) > 4 else "")
    return f"{len(ours) - len(fresh)} of {len(ours)} rows{f', new: {listed}' if fresh else ''}"
