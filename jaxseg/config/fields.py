"""Checks of a config against the table of its fields, jaxseg.schema.

`complete` fills in what a config leaves out, `tidy` brings values into their one form, and `check` refuses a field that
does not exist and a value that cannot be meant.
"""

import difflib
import functools
import inspect
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxseg import files
from jaxseg.config.defaults import AUTO, CONCAT, CROSS_ENTROPY, DEFAULTS, LOSS
from jaxseg.config.schema import HIDDEN, PATHS, SCHEMA, SYNONYMS, TYPES, Each, Field, Part
from jaxseg.errors import ConfigError
from jaxseg.losses import LOSSES
from jaxseg.models import BACKBONES, HEADS, NECKS
from jaxseg.registry import lookup


class UnknownField(ConfigError):
    """A config has a field that this version of jaxseg does not read."""


# --- Filling in -------------------------------------------------------------------------------------------------------


def complete(config: ConfigDict) -> ConfigDict:
    """Put defaults (jaxseg.presets) in place of fields that a config leaves out, as one of an earlier version does."""
    with config.unlocked(), config.ignore_type():
        _fill(config, DEFAULTS)
        for entry in _dicts(config.losses):
            named = entry.get("name") in ("cross_entropy", "point_cross_entropy")
            _fill(entry, LOSS | (CROSS_ENTROPY if named else {}))
        for entry in _dicts(config.dataset.get("concat")):
            _fill(entry, CONCAT | dict(train_split=config.dataset.train_split))
    return config


def complete_modules(config: ConfigDict) -> ConfigDict:
    """Put the defaults of modules' arguments, losses' options and multipliers in place of those that it does not state.

    Two configs of one meaning are then equal, whichever version wrote them.
    """
    model = config.model
    parts = [(BACKBONES, model.get("backbone")), (NECKS, model.get("neck"))]
    parts += [(HEADS, head) for head in _dicts(model.get("heads"))] + [
        (LOSSES, loss) for loss in _dicts(config.losses)
    ]
    with config.unlocked(), config.ignore_type():
        for table, part in parts:
            if isinstance(part, ConfigDict) and part.get("name") in table:
                parameters = inspect.signature(table[part.name]).parameters.values()
                named = [p for p in parameters if p.name not in HIDDEN and p.default is not p.empty]
                _fill(part, {p.name: p.default for p in named})
        for rule in _dicts(config.optimizer.multipliers):
            _fill(rule, dict(learning_rate=1.0, weight_decay=1.0))
            _fill(rule, dict(freeze_statistics=rule.learning_rate == 0))
    return config


def _fill(config: ConfigDict, defaults: Mapping) -> None:
    for key, value in defaults.items():
        if key not in config:
            config[key] = ConfigDict(value) if isinstance(value, Mapping) else value
        elif isinstance(value, Mapping) and isinstance(config[key], ConfigDict):
            _fill(config[key], value)


def _dicts(part: Any) -> list[ConfigDict]:
    return (
        [entry for entry in part.values() if isinstance(entry, ConfigDict)]
        if isinstance(part, ConfigDict)
        else []
    )


def tidy(config: ConfigDict, path: str = "") -> ConfigDict:
    """Bring values into their one form: tuples for lists, text for paths, with `~` expanded, ('auto',) for 'auto'."""
    with config.unlocked(), config.ignore_type():
        for key in list(config):
            value, where = config[key], f"{path}.{key}".lstrip(".")
            if isinstance(value, ConfigDict):
                tidy(value, where)
            elif (better := _tidied(value, where)) is not value:
                del config[key]  # else ConfigDict would cast a tuple to the list that was there
                config[key] = better
    return config


def _tidied(value: Any, path: str) -> Any:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if value == AUTO[0] and path.endswith(".class_weight"):
        return AUTO
    if path == "dataset.nodata":
        tidied = tuple(_nodata(item) for item in (value if isinstance(value, tuple) else (value,)))
        return value if tidied == value else tidied
    is_path = path in PATHS or re.fullmatch(r"dataset\.concat\.[^.]+\.root", path)
    return (
        str(files.expand(value))
        if is_path and isinstance(value, str) and value.startswith("~")
        else value
    )


def _nodata(value: Any) -> Any:
    """A value of dataset.nodata as it is kept: a number, or 'nan', which JSON cannot hold as one."""
    if isinstance(value, bool):
        return value  # which is no number here
    try:
        number = float(value)
    except (TypeError, ValueError):
        return value
    return "nan" if math.isnan(number) else number


# --- Checking ---------------------------------------------------------------------------------------------------------


def check(config: Mapping, parts: Iterable[str] = ()) -> None:
    """Raise ConfigError, naming the field, for the first field that is unknown, missing or holds what cannot be meant.

    Args:
        config: a complete config.
        parts: the top fields to look at, all by default.
    """
    parts = tuple(parts)
    config = {key: config[key] for key in parts} if parts else config
    for error in problems(config, {key: SCHEMA[key] for key in parts} if parts else SCHEMA):
        raise error


def problems(value: Any, node: Any = None, path: str = "") -> Iterator[ConfigError]:
    """All that is wrong with a config, or with the part at `path` that `node` of SCHEMA describes."""
    node = SCHEMA if node is None else node
    if node is None or isinstance(node, Field):
        yield from () if node is None else _value_problems(value, node, path)
        return
    if not hasattr(value, "keys"):
        yield ConfigError(
            f"config.{path} is {value!r}", field=path, hint=f"it must be {describe(node)}"
        )
        return
    if isinstance(node, Each):
        for key, entry in value.items():
            where = f"{path}.{key}"
            if not re.fullmatch(node.labels, str(key)):
                yield ConfigError(
                    f"config.{path} has an entry '{key}'",
                    field=where,
                    hint=f"it must be {node.words}",
                )
            elif hasattr(entry, "keys"):
                yield from problems(entry, node.node, where)
            else:
                hint = f"it must be a dict, for instance {node.example}"
                yield ConfigError(f"config.{where} is {entry!r}", field=where, hint=hint)
        return
    try:
        table, required = (
            (node.fields(value, path), node.required)
            if isinstance(node, Part)
            else (node, tuple(node))
        )
    except ConfigError as error:  # no module or loss of this name: nothing tells its fields
        yield error
        return
    for key in value:
        if key not in table:
            yield unknown_field(
                path, key, table, value.get("name", "") if isinstance(node, Part) else ""
            )
    for key, inner in table.items():
        where = f"{path}.{key}".lstrip(".")
        if key in value:
            yield from problems(value[key], inner, where) if inner is not None else ()
        elif key in required:
            yield ConfigError(
                f"config.{where} is missing", field=where, hint=f"it must be {describe(inner)}"
            )


def _value_problems(value: Any, field: Field, path: str) -> Iterator[ConfigError]:
    several = isinstance(value, tuple | list)
    if any(type(value) is type(other) and value == other for other in field.others):
        return
    values = tuple(value) if several else (value,)
    typed = all(isinstance(v, TYPES[field.kind]) for v in values)
    typed &= field.kind is bool or not any(isinstance(v, bool | np.bool_) for v in values)
    finite = field.kind is not float or typed and all(math.isfinite(v) for v in values)
    shaped = (
        not several
        if field.length is None
        else field.single or several and field.length in (0, len(values))
    )
    reason = ""
    try:
        good = typed and finite and shaped and field.holds(*values)
    except re.error as error:
        good, reason = False, f" ({error})"
    if good and field.names:
        try:
            lookup(dict.fromkeys(field.names), value, f"config.{path}", field=path)
        except ConfigError as error:
            yield error
    elif not good:
        yield ConfigError(
            f"config.{path} is {value!r}", field=path, hint=f"it must be {field.words}{reason}"
        )


def describe(node: Any) -> str:
    """What a field or part must be, in words."""
    if isinstance(node, Field):
        return node.words
    if isinstance(node, Each):
        return f"a dict of entries, {{'a label': {node.example}}}"
    required = node.required if isinstance(node, Part) else tuple(node)
    return f"a dict with {', '.join(required)}"


def find(config: Mapping, path: str) -> Any:
    """The node of SCHEMA that describes a field of `config`, None if there is none."""
    node, part, where = SCHEMA, config, ""
    for key in filter(None, path.split(".")):
        try:
            node = _entry(node, part, where).get(key) if not isinstance(node, Each) else node.node
        except ConfigError:
            return None
        part = part[key] if hasattr(part, "keys") and key in part else {}
        where = f"{where}.{key}".lstrip(".")
    return node


def known(config: Mapping, path: str) -> tuple[str, ...]:
    """The names of all fields that the part of `config` at `path` may have, () where they are labels or it has none."""
    part = functools.reduce(lambda part, key: part[key], filter(None, path.split(".")), config)
    node = find(config, path)
    try:
        return () if isinstance(node, Each) else tuple(_entry(node, part, path))
    except ConfigError:
        return ()


def _entry(node: Any, part: Mapping, path: str) -> dict[str, Any]:
    """The fields of a part, {} of what has none."""
    if isinstance(node, Part):
        return node.fields(part, path)
    return node if isinstance(node, dict) else {}


def unknown_field(path: str, key: str, known: Iterable[str], name: str = "") -> UnknownField:
    """The error for a field that the part of a config at `path`, a `name`, does not have, with the one meant."""
    known, key = [str(field) for field in known], str(key)
    meant = [field for field in SYNONYMS.get(key, ()) if field in known]
    meant += difflib.get_close_matches(key, known, 1, 0.5)
    near = f"did you mean '{meant[0]}'? " if meant else ""
    part = ".".join(filter(None, ("config", path))) + (f", '{name}'" if name else "")
    other = (
        name and not meant and path.startswith("model.")
    )  # fields of the module that stood there before
    whole = f'; to choose another name, give all of it: --config.{path}="{{...}}"' if other else ""
    hint = f"{near}Known: {', '.join(known)}{whole}"
    return UnknownField(
        f"unknown field '{key}' of {part}", field=f"{path}.{key}".lstrip("."), hint=hint
    )
