"""Lookup of names, with the nearest one in the error."""

import difflib
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, TypeVar

from jaxseg.errors import ConfigError

T = TypeVar("T")
SIMILAR = 0.4  # difflib's ratio from which a name counts as near


def find_nearest(name: Any, names: Iterable[Any], cutoff: float = SIMILAR) -> str:
    """Return the most similar of some names, "" if none is similar.

    Args:
        name: What was given.
        names: What was possible.
        cutoff: difflib's ratio, 0 to 1, that the result must reach.
    """
    near = difflib.get_close_matches(str(name), map(str, names), 1, cutoff)
    return near[0] if near else ""


def lookup(table: Mapping[Any, T], name: Any, what: str, field: str = "") -> T:
    """Return an entry of a table.

    Args:
        table: Entries by name.
        name: The name to look up.
        what: What the name stands for, for the message ("head").
        field: The config field that has the name, for the error.

    Raises:
        ConfigError: The table has no such name; the error lists the known ones and the nearest.
    """
    if isinstance(name, Hashable) and name in table:
        return table[name]
    near = find_nearest(name, table)
    hint = f" Did you mean '{near}'?" if near else ""
    known = ", ".join(str(key) or "'' (empty)" for key in table)
    raise ConfigError(f"Unknown {what} '{name}'.{hint} Known: {known}.", field=field)
