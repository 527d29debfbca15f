"""Lookup of a name in a table, with the nearest name in the error."""

import difflib
from collections.abc import Hashable, Mapping
from typing import Any, TypeVar

from jaxseg.errors import ConfigError

T = TypeVar("T")


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
    near = difflib.get_close_matches(str(name), map(str, table), 1, 0.4)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    known = ", ".join(str(key) or "'' (empty)" for key in table)
    raise ConfigError(f"Unknown {what} '{name}'.{hint} Known: {known}.", field=field)
