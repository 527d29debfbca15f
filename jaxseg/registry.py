"""Looking a name up in a table."""

import difflib
from collections.abc import Hashable, Mapping
from typing import Any

from jaxseg.errors import ConfigError


def lookup(table: Mapping[Any, Any], name: Any, what: str, field: str = "") -> Any:
    """table[name], or a ConfigError about `field` that lists the known names and the nearest one."""
    if isinstance(name, Hashable) and name in table:
        return table[name]
    near = difflib.get_close_matches(str(name), map(str, table), 1, 0.4)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    known = ", ".join(str(key) or "'' (empty)" for key in table)
    raise ConfigError(f"Unknown {what} '{name}'.{hint} Known: {known}.", field=field)
