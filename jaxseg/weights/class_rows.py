"""Classifier rows of one model in another: found by shape, carried over by class name."""

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
        axes: Returns the axes of its variables that have one entry per class (see `find_axes`).
    """

    names: tuple[str, ...]
    axes: Callable[[], Axes]


def find_axes(
    config: ModelConfig, image_shape: tuple[int, int, int, int]
) -> dict[str, tuple[int, ...]]:
    """Find the axes of variables that grow with the number of classes: {'params/a/b/kernel': (3,)}.

    On such an axis the classes come last; features may precede them (PointRend's layers read both).

    Args:
        config: The model's config, with its number of classes.
        image_shape: [B, H, W, C] of images that the model takes.
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
    """Return `source` with its classifiers as the model of the classes `ours` has them.

    Args:
        source: Variables of a model of the classes `theirs`.
        fresh: Variables of the model of the classes `ours`, for classes that the source lacks.
        axes: From `find_axes`.
        theirs: Class names of the source, in order.
        ours: Class names of the result, in order.
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
        if common and same_features:  # otherwise the layer is another one, and stays fresh
            rows = _index(taken.shape, where, common, theirs)
            value[_index(value.shape, where, common, ours)] = taken[rows]
            old[path] = value
    return unflatten_dict(old, sep="/")


def _without_classes(shape: Sequence[int], where: Sequence[int], classes: int) -> list[int]:
    """Return the shape with the classes left out of the axes `where`."""
    return [size - classes if axis in where else size for axis, size in enumerate(shape)]


def _index(
    shape: Sequence[int], where: Sequence[int], chosen: Sequence[str], names: Sequence[str]
) -> tuple[np.ndarray, ...]:
    """Index features and chosen classes, in that order, along `where`; other axes entirely."""
    rows = [names.index(name) for name in chosen]
    indices = []
    for axis, size in enumerate(shape):
        features = size - len(names)
        along_classes = [*range(features), *(features + row for row in rows)]
        indices.append(along_classes if axis in where else range(size))
    return np.ix_(*indices)


def resize_classes(variables: Mapping[str, Any], axes: Axes, more: int) -> dict[str, Any]:
    """Return zeros of the shapes that `variables` would have with `more` (or fewer) classes."""
    flat = {}
    for path, leaf in flatten_dict(dict(variables), sep="/").items():
        shape = list(np.shape(leaf))
        for axis in axes.get(path, ()):
            shape[axis] += more
        flat[path] = np.broadcast_to(np.float32(0), shape)
    return unflatten_dict(flat, sep="/")


def describe(theirs: Sequence[str], ours: Sequence[str]) -> str:
    """Say how many of the classes `ours` a model of the classes `theirs` has, and which are new."""
    fresh = [name for name in ours if name not in theirs]
    more = f" and {len(fresh) - 4} more" if len(fresh) > 4 else ""
    new = f", new: {', '.join(fresh[:4])}{more}" if fresh else ""
    return f"{len(ours) - len(fresh)} of {len(ours)} rows{new}"
