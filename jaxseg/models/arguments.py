"""Checks of the arguments that a config gives to backbones, necks and heads.

A config's `model.backbone`, `model.neck` and `model.heads.*` hold the arguments of a class. Their
types are read from the class's annotations, their ranges from the tables below.
"""

import dataclasses
import functools
import inspect
import math
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from flax import linen as nn

from jaxseg.config.fields import FLAG, TEXT, TYPES, Field, Part, name_of
from jaxseg.models.build import BACKBONES, HEADS, NECKS
from jaxseg.registry import lookup

NOT_IN_CONFIGS = ("parent", "name", "layer", "num_classes")  # arguments that create_model sets


@dataclasses.dataclass(frozen=True)
class Within:
    """Whether all of one or more numbers are in a range.

    Attributes:
        low: Smallest number.
        high: Largest number.
        above: Whether `low` itself is out of range.
        may_be_empty: Whether an empty tuple is accepted.
    """

    low: float
    high: float = math.inf
    above: bool = False
    may_be_empty: bool = False

    def __call__(self, *values: float) -> bool:
        """Return whether the values are in range."""
        if not values:
            return self.may_be_empty
        reaches = min(values) > self.low if self.above else min(values) >= self.low
        return reaches and max(values) <= self.high


def is_odd(value: int) -> bool:
    """Whether a number is odd and positive."""
    return value >= 1 and value % 2 == 1


def is_given(*values: Any) -> bool:
    """Whether there is at least one value."""
    return len(values) > 0


class Rule(NamedTuple):
    """The range of an argument: a test, and words that complete "it must be ..."."""

    holds: Callable[..., bool]
    words: str


WHOLE = Within(1)
# By argument. Arguments that are not listed are 1 or more if whole numbers, else above 0.
RULES: dict[str, Rule] = {
    "in_index": Rule(
        is_given, "the number of a feature map, or several where the head reads several"
    ),
    "low_level_index": Rule(is_given, "the number of a feature map, or None"),
    # The first convolutions have half as many channels.
    "stem_channels": Rule(Within(2), "a whole number, 2 or more"),
    "num_convs": Rule(Within(0), "a whole number, 0 or more"),
    "kernel_size": Rule(is_odd, "an odd number"),
    "multi_grid": Rule(
        Within(1, may_be_empty=True), "one dilation per block of the last stage, or ()"
    ),
    "out_indices": Rule(Within(0), "numbers of stages"),
    "subdivision_steps": Rule(Within(0), "a whole number, 0 or more"),
    "importance": Rule(Within(0, 1), "a share, 0 to 1"),
    "ratio": Rule(Within(0, 1, above=True), "above 0, at most 1"),
    "momentum": Rule(Within(0, 1, above=True), "above 0, at most 1"),
    "oversample": Rule(Within(1), "1 or more"),
}
HEAD_RULES: dict[str, Rule] = {
    "channels": Rule(
        Within(0), "a whole number, 1 or more, or 0 for the channels of the maps that it reads"
    ),
    "feature_strides": Rule(
        Within(1, may_be_empty=True), "one stride per map, or () for the backbone's"
    ),
}
NAMES: dict[str, tuple[str, ...]] = {
    "stem": ("v1", "v1c", "v1d"),
    "arch": ("large", "small"),
    "small_input": ("error", "global"),
}
# Lengths of tuples, 0 for any. Other tuples have the length of their default in a backbone, and any
# length in a head.
LENGTHS: dict[str, int] = {"mask_size": 2, "pool_stride": 2, "multi_grid": 0, "out_indices": 0}


def defaults_of(module: Callable[..., nn.Module]) -> dict[str, Any]:
    """Return {argument: default} of a backbone, neck or head, for arguments that have a default."""
    return {
        name: parameter.default
        for name, parameter in _parameters(module).items()
        if parameter.default is not parameter.empty
    }


def _parameters(module: Callable[..., nn.Module]) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(module).parameters
    return {name: p for name, p in parameters.items() if name not in NOT_IN_CONFIGS}


@functools.cache
def fields_of(module: type[nn.Module], kind: str) -> dict[str, Field | None]:
    """Return {argument: node} of a class.

    Args:
        module: The class.
        kind: 'backbone', 'neck' or 'head'.

    Returns:
        The nodes; None for arguments whose type cannot be written in a config.
    """
    return {name: _field(parameter, kind) for name, parameter in _parameters(module).items()}


def _field(parameter: inspect.Parameter, kind: str) -> Field | None:
    """The node of one argument: `int`, `Sequence[int]`, `int | Sequence[int]`, `int | None`, ..."""
    name, annotation = parameter.name, parameter.annotation
    options = typing.get_args(annotation) or (annotation,)
    single = next((option for option in (bool, int, float, str) if option in options), None)
    sequences = [o for o in (annotation, *options) if typing.get_origin(o) is Sequence]
    is_sequence = bool(sequences)
    alone = annotation in sequences
    element = typing.get_args(sequences[0])[0] if alone else single
    if element not in TYPES:
        return None
    if name in NAMES:
        return name_of(*NAMES[name])
    length = _length(parameter, kind) if is_sequence else None
    holds, words = _rule(name, kind, element, length)
    return Field(
        element,
        words,
        holds,
        length,
        single=is_sequence and not alone,
        others=(None,) if type(None) in options else (),
    )


def _length(parameter: inspect.Parameter, kind: str) -> int:
    if parameter.name in LENGTHS:
        return LENGTHS[parameter.name]
    if kind == "backbone" and isinstance(parameter.default, tuple):
        return len(parameter.default)
    return 0


def _rule(name: str, kind: str, element: type, length: int | None) -> Rule:
    """The range of an argument: listed by name, else the default of its type."""
    if kind == "head" and name in HEAD_RULES:
        return HEAD_RULES[name]
    if name in RULES:
        return RULES[name]
    if element is bool:
        return Rule(FLAG.holds, FLAG.words)
    if element is str:
        return Rule(TEXT.holds, TEXT.words)
    if element is float:
        return Rule(Within(0, above=True), "above 0")
    if length is None:
        return Rule(WHOLE, "a whole number, 1 or more")
    return Rule(WHOLE, f"{length or 'one or more'} whole numbers, 1 or more")


@dataclasses.dataclass(frozen=True)
class _ModuleFields:
    """The fields of a dict whose `name` selects a class from a table."""

    table: Mapping[str, type[nn.Module]]
    kind: str
    may_be_missing: bool = False

    def __call__(self, part: Mapping[str, Any], path: str) -> dict[str, Any]:
        if self.may_be_missing and not part.get("name"):
            return {"name": TEXT}
        what = f"{self.kind} at config.{path}.name"
        module = lookup(self.table, part.get("name"), what, field=f"{path}.name")
        return {"name": TEXT} | fields_of(module, self.kind)  # type: ignore[arg-type] # hashable


BACKBONE = Part(_ModuleFields(BACKBONES, "backbone"))
NECK = Part(_ModuleFields(NECKS, "neck", may_be_missing=True))
HEAD = Part(_ModuleFields(HEADS, "head"), required=("name", "channels"))
