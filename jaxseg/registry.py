"""Lookup of names, with the nearest one in the error."""

import difflib
from collections.abc import Collection, Hashable, Iterable, Mapping
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
        what: The kind of thing that has the name ("head"), for the message.
        field: The config field that has the name, for the error.

    Returns:
        The entry.

    Raises:
        ConfigError: The table has no such name; the error lists the known ones and the nearest.
    """
    if isinstance(name, Hashable) and name in table:
        return table[name]
    raise unknown_name(table, name, what, field)


def check_name(known: Collection[Any], name: Any, what: str, field: str = "") -> None:
    """Check that a name is one of the known names.

    Args:
        known: The known names.
        name: The name to check.
        what: The kind of thing that has the name ("head"), for the message.
        field: The config field that has the name, for the error.

    Raises:
        ConfigError: The name is unknown; the error lists the known ones and the nearest.
    """
    if name not in known:
        raise unknown_name(known, name, what, field)


def unknown_name(known: Iterable[Any], name: Any, what: str, field: str = "") -> ConfigError:
    """Make the error for an unknown name, with the known ones and the nearest; see `check_name`."""
    names = [str(key) for key in known]
    near = find_nearest(name, names)
    hint = f" Did you mean '{near}'?" if near else ""
    listing = ", ".join(key or "'' (empty)" for key in names)
    return ConfigError(f"Unknown {what} '{name}'.{hint} Known: {listing}.", field=field)
