"""How a config field is declared: its type, range, default and meaning, in one place.

`declare` attaches a `Field` to a dataclass field of `jaxseg.config.schema`; the checks and the
reference in docs/config.md are generated from it. The other nodes describe dicts: `Each` a dict of
labelled entries, `Part` a dict whose fields depend on its own name, `Open` a dict whose further
fields are declared by a higher floor.
"""

import dataclasses
import numbers
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from flax.core import FrozenDict

LARGEST = 1e9  # of weights and factors, well within the range of float32
LARGEST_INT = 2**31 - 1
TYPES: dict[type, Any] = {
    bool: (bool, np.bool_),
    int: numbers.Integral,
    float: numbers.Real,
    str: str,
    object: object,
}


class Field(NamedTuple):
    """The values that a field may hold.

    Attributes:
        kind: Type of the value, or of each element of a tuple. `float` accepts whole numbers and
            only finite ones.
        words: Completes the sentence "it must be ...".
        holds: Called with the value, or with the elements of a tuple; returns whether they are in
            range.
        length: None for a single value, n for a tuple of n elements, 0 for a tuple of any length.
        single: Whether a single value is accepted instead of a tuple.
        others: Further accepted values.
        names: The accepted names, () for any.
    """

    kind: type
    words: str
    holds: Callable[..., Any] = lambda *values: True
    length: int | None = None
    single: bool = False
    others: tuple[Any, ...] = ()
    names: tuple[str, ...] = ()


class Each(NamedTuple):
    """A dict of entries under labels.

    Attributes:
        node: Describes each entry.
        example: One entry as Python source, for messages.
        labels: A regular expression that the labels must match.
        words: Describes the accepted labels, "" if every label is accepted.
    """

    node: Any
    example: str
    labels: str = ".*"
    words: str = ""


class Part(NamedTuple):
    """A dict whose fields depend on its content.

    Attributes:
        fields: Called with the dict and its path; returns {field: node}.
        required: Fields that must be present.
    """

    fields: Callable[[Mapping[str, Any], str], dict[str, Any]]
    required: tuple[str, ...] = ("name",)


class Open(NamedTuple):
    """A dict of which only some fields are declared here.

    Attributes:
        nodes: {field: node} of the known fields; others pass unchecked.
        required: Fields that must be present.
    """

    nodes: dict[str, Any]
    required: tuple[str, ...] = ("name",)


def declare(default: Any, field: Field, meaning: str) -> Any:
    """Declare a dataclass field.

    Args:
        default: Default of the field.
        field: Type and range of the field.
        meaning: One sentence for docs/config.md.

    Returns:
        The field of the dataclass.
    """
    return dataclasses.field(default=default, metadata={"node": field, "meaning": meaning})


def declare_entries(entry: type, node: Each, meaning: str) -> Any:
    """Declare a dataclass field that maps labels to instances of a dataclass.

    Args:
        entry: The dataclass of the entries.
        node: Description of the dict.
        meaning: One sentence for docs/config.md.

    Returns:
        The field of the dataclass.
    """
    metadata = {"node": node, "meaning": meaning, "entry": entry}
    return dataclasses.field(default_factory=FrozenDict, metadata=metadata)


# --- Common types and ranges ----------------------------------------------------------------------


def whole(low: int, words: str = "", high: int = LARGEST_INT) -> Field:
    """Return the field of a whole number from `low` to `high`, both included."""
    return Field(int, words or f"a whole number, {low} or more", lambda n: low <= n <= high)


def name_of(*names: str) -> Field:
    """Return the field of a name, one of `names`."""
    return Field(str, "one of " + ", ".join(repr(name) for name in names), names=names)


FLAG = Field(bool, "True or False")
TEXT = Field(str, "text")
PROBABILITY = Field(float, "a probability, 0 to 1", lambda p: 0 <= p <= 1)
BELOW_ONE = Field(float, "0 or more and below 1", lambda p: 0 <= p < 1)
POSITIVE = Field(float, "above 0", lambda x: 0 < x <= LARGEST)
FACTOR = Field(float, f"0 or more, at most {LARGEST:g}", lambda x: 0 <= x <= LARGEST)
INTERVAL = whole(0, "a whole number of steps, 0 (at the end only) or more")
SIZE = Field(int, "(height, width) in pixels", lambda *pair: min(pair) >= 1, length=2)
WINDOW = Field(int, "(height, width) in pixels, or (0, 0)", lambda *pair: min(pair) >= 0, length=2)
RESIZE = Field(
    int,
    "(long, short) in pixels, or (0, 0)",
    lambda a, b: (a >= 1 and b >= 1) or a == b == 0,
    length=2,
)
