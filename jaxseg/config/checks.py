"""Checks of a config against its declaration (`jaxseg.config.schema`).

`complete` fills in missing fields, `tidy` normalises values, and `check` refuses fields that do not
exist and values out of range. Every function takes the nodes to check against, so that a higher
floor can add the arguments of models and losses
(`jaxseg.validation.SCHEMA`).
"""

import functools
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxseg import files
from jaxseg.config.defaults import AUTO, CROSS_ENTROPY, LOSS_ALIASES
from jaxseg.config.fields import TYPES, Each, Field, Open, Part
from jaxseg.config.schema import CONCAT, DEFAULTS, LOSS, PATHS, SCHEMA
from jaxseg.errors import ConfigError
from jaxseg.registry import find_nearest, unknown_name

CLOSE = 0.5  # similarity of a field that is suggested
# Names of fields in other libraries -> ours, which error messages suggest.
SYNONYMS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("lr", "lr_mult", "base_lr", "rate"), ("learning_rate",)),
    **dict.fromkeys(("wd", "decay_mult", "wd_mult", "decay"), ("weight_decay",)),
    **dict.fromkeys(("min_lr", "eta_min", "end_lr"), ("end_value",)),
    **dict.fromkeys(("betas", "beta1"), ("b1",)),
    **dict.fromkeys(("max_iters", "iterations", "epochs", "max_epochs"), ("steps",)),
    **dict.fromkeys(("samples_per_gpu", "bs"), ("batch_size",)),
    **dict.fromkeys(("data_root", "path", "folder", "img_dir", "dir"), ("root",)),
    **dict.fromkeys(("scale", "img_scale", "size"), ("scales", "resize", "crop_size")),
    **dict.fromkeys(("grad_clip", "max_norm", "clip"), ("clip_norm",)),
    **dict.fromkeys(("dropout", "dropout_ratio"), ("dropout_rate",)),
    **dict.fromkeys(("load_from", "weights", "checkpoint"), ("init_from",)),
    **dict.fromkeys(("freeze", "frozen", "norm_eval", "freeze_bn"), ("freeze_statistics",)),
    **dict.fromkeys(("key", "regex", "custom_keys"), ("pattern",)),
    "beta2": ("b2",),
    "eps": ("epsilon",),
    "epsilon": ("eps",),
    "warmup_iters": ("warmup_steps",),
    "warmup_ratio": ("warmup_factor",),
    "milestones": ("boundaries",),
    "gamma": ("decay",),
    "type": ("name",),
    "mean": ("image_mean",),
    "std": ("image_std",),
    "loss_weight": ("weight",),
    "use_sigmoid": ("sigmoid",),
    "thresh": ("threshold",),
    "times": ("repeat",),
    "split": ("train_split",),
    "workers": ("num_workers",),
    "bn_momentum": ("momentum",),
    "reduction": ("average",),
    "in_channels": ("channels",),
}


class UnknownField(ConfigError):  # noqa: N818 - a ConfigError like the others
    """A config has a field that this version of jaxseg does not read."""


# --- Filling in -----------------------------------------------------------------------------------


def complete(config: ConfigDict) -> ConfigDict:
    """Fill in the defaults of missing fields, in place.

    Args:
        config: A config of this or an earlier version.

    Returns:
        The same config.
    """
    with config.unlocked(), config.ignore_type():
        fill(config, DEFAULTS)
        for entry in entries(config.losses):
            name = entry.get("name")
            if isinstance(name, str):
                entry.name = LOSS_ALIASES.get(name, name)
            fill(entry, LOSS)
            if name in ("cross_entropy", "point_cross_entropy"):
                fill(entry, CROSS_ENTROPY)
        for entry in entries(config.dataset.get("concat")):
            fill(entry, CONCAT | {"train_split": config.dataset.train_split})
    return config


def fill(config: ConfigDict, defaults: Mapping[str, Any]) -> None:
    """Add `defaults` for missing fields of `config`, including those of nested dicts."""
    for key, value in defaults.items():
        if key not in config:
            config[key] = ConfigDict(value) if isinstance(value, Mapping) else value
        elif isinstance(value, Mapping) and isinstance(config[key], ConfigDict):
            fill(config[key], value)


def entries(part: Any) -> list[ConfigDict]:
    """Return the values of a dict that are dicts themselves; [] for anything else."""
    if not isinstance(part, ConfigDict):
        return []
    return [entry for entry in part.values() if isinstance(entry, ConfigDict)]


def tidy(config: ConfigDict, path: str = "") -> ConfigDict:
    """Normalise values, in place.

    Lists become tuples, paths become strings with `~` expanded, and class_weight 'auto' becomes the
    tuple ('auto',).

    Args:
        config: The config, or a part of it.
        path: Field of the part; "" for the whole config.

    Returns:
        The same config.
    """
    with config.unlocked(), config.ignore_type():
        for key in list(config):
            value = config[key]
            where = f"{path}.{key}".lstrip(".")
            if isinstance(value, ConfigDict):
                tidy(value, where)
            elif (better := _tidied(value, where)) is not value:
                del config[key]  # otherwise ConfigDict would cast a tuple back to a list
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
    if is_path and isinstance(value, str) and value.startswith("~"):
        return str(files.expand(value))
    return value


def _nodata(value: Any) -> Any:
    """Return a value of dataset.nodata in its stored form: a number, or the text 'nan'."""
    if isinstance(value, bool):
        return value  # refused by the check
    try:
        number = float(value)
    except (TypeError, ValueError):
        return value
    return "nan" if math.isnan(number) else number


# --- Checking -------------------------------------------------------------------------------------


def check(
    config: Mapping[str, Any], schema: Mapping[str, Any] = SCHEMA, parts: Iterable[str] = ()
) -> None:
    """Raise the first problem of a complete config.

    Args:
        config: A complete config.
        schema: {field: node} of the whole config.
        parts: Names of the top-level fields to check; all by default.

    Raises:
        ConfigError: A field is unknown, missing or out of range; the error names it.
    """
    if parts := tuple(parts):
        config, schema = {k: config[k] for k in parts}, {k: schema[k] for k in parts}
    for error in problems(config, schema):
        raise error


def problems(value: Any, node: Any, path: str = "") -> Iterator[ConfigError]:
    """Yield the problems of a config or a part of it.

    Args:
        value: The config, or a value in it.
        node: Declaration of the value.
        path: Field of the value, "" for the whole config.

    Yields:
        An error for each problem.
    """
    if node is None:
        return
    if isinstance(node, Field):
        yield from _value_problems(value, node, path)
    elif not hasattr(value, "keys"):
        yield ConfigError(
            f"config.{path} is {value!r}", field=path, hint=f"it must be {describe(node)}"
        )
    elif isinstance(node, Each):
        yield from _entry_problems(value, node, path)
    else:
        yield from _part_problems(value, node, path)


def _entry_problems(value: Mapping[str, Any], node: Each, path: str) -> Iterator[ConfigError]:
    for key, entry in value.items():
        where = f"{path}.{key}"
        if not re.fullmatch(node.labels, str(key)):
            yield ConfigError(
                f"config.{path} has an entry '{key}'", field=where, hint=f"it must be {node.words}"
            )
        elif hasattr(entry, "keys"):
            yield from problems(entry, node.node, where)
        else:
            hint = f"it must be a dict, for instance {node.example}"
            yield ConfigError(f"config.{where} is {entry!r}", field=where, hint=hint)


def _part_problems(value: Mapping[str, Any], node: Any, path: str) -> Iterator[ConfigError]:
    try:
        table = nodes(node, value, path)
    except ConfigError as error:  # no module or loss has this name, so its fields are unknown
        yield error
        return
    for key in value:
        if key not in table and not isinstance(node, Open):
            name = value.get("name", "") if isinstance(node, Part) else ""
            yield unknown_field(path, key, table, name)
    required = node.required if isinstance(node, Part | Open) else tuple(node)
    for key in dict.fromkeys((*table, *required)):
        where = f"{path}.{key}".lstrip(".")
        if key in value:
            yield from problems(value[key], table.get(key), where)
        elif key in required:
            hint = f"it must be {describe(table[key])}" if table.get(key) else ""
            yield ConfigError(f"config.{where} is missing", field=where, hint=hint)


def _value_problems(value: Any, field: Field, path: str) -> Iterator[ConfigError]:
    if any(type(value) is type(other) and value == other for other in field.others):
        return
    several = isinstance(value, tuple | list)
    values = tuple(value) if several else (value,)
    reason = ""
    try:
        good = (
            _is_typed(values, field)
            and _is_shaped(value, several, field)
            and bool(field.holds(*values))
        )
    except re.error as error:
        good, reason = False, f" ({error})"
    if not good:
        hint = f"it must be {field.words}{reason}"
        yield ConfigError(f"config.{path} is {value!r}", field=path, hint=hint)
    elif field.names and value not in field.names:
        yield unknown_name(field.names, value, f"config.{path}", path)


def _is_typed(values: tuple[Any, ...], field: Field) -> bool:
    if not all(isinstance(v, TYPES[field.kind]) for v in values):
        return False
    if field.kind is not bool and any(isinstance(v, bool | np.bool_) for v in values):
        return False
    return field.kind is not float or all(math.isfinite(v) for v in values)


def _is_shaped(value: Any, several: bool, field: Field) -> bool:
    if field.length is None:
        return not several
    return field.length in (0, len(value)) if several else field.single


def describe(node: Any) -> str:
    """Return the words that complete "it must be ..." for a field or part."""
    if isinstance(node, Field):
        return node.words
    if isinstance(node, Each):
        return f"a dict of entries, {{'a label': {node.example}}}"
    required = node.required if isinstance(node, Part | Open) else tuple(node)
    return f"a dict with {', '.join(required)}"


# --- Finding a field ------------------------------------------------------------------------------


def nodes(node: Any, part: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Return the nodes of the fields of a dict.

    Args:
        node: Declaration of the dict.
        part: The dict.
        path: Field of the dict in the config.

    Returns:
        {field: node}, {} if the dict has no fields of its own.

    Raises:
        ConfigError: No module or loss has the name that the part gives.
    """
    if isinstance(node, Part):
        return node.fields(part, path)
    if isinstance(node, Open):
        return node.nodes
    return dict(node) if isinstance(node, Mapping) else {}


def find(config: Mapping[str, Any], path: str, schema: Mapping[str, Any] = SCHEMA) -> Any:
    """Return the node of a field ('dataset.root') of a config, None if there is no such field."""
    node: Any = schema
    part: Any = config
    where = ""
    for key in filter(None, path.split(".")):
        try:
            node = node.node if isinstance(node, Each) else nodes(node, part, where).get(key)
        except ConfigError:
            return None
        part = part[key] if hasattr(part, "keys") and key in part else {}
        where = f"{where}.{key}".lstrip(".")
    return node


def known_fields(
    config: Mapping[str, Any], path: str, schema: Mapping[str, Any] = SCHEMA
) -> tuple[str, ...]:
    """Return the fields that the part of `config` at `path` may have, () if labels are free."""
    part: Any = functools.reduce(lambda part, key: part[key], filter(None, path.split(".")), config)
    node = find(config, path, schema)
    try:
        return () if isinstance(node, Each) else tuple(nodes(node, part, path))
    except ConfigError:
        return ()


def unknown_field(path: str, key: str, known: Iterable[str], name: str = "") -> UnknownField:
    """Make the error for an unknown field, with the nearest known one.

    Args:
        path: The part of the config that has the field.
        key: The field.
        known: Fields that this part may have.
        name: The part's own name ('resnet'), if its fields depend on it.
    """
    known = [str(field) for field in known]
    key = str(key)
    meant = [field for field in SYNONYMS.get(key, ()) if field in known]
    meant += filter(None, [find_nearest(key, known, CLOSE)])
    near = f"did you mean '{meant[0]}'? " if meant else ""
    part = ".".join(filter(None, ("config", path))) + (f", '{name}'" if name else "")
    hint = f"{near}Known: {', '.join(known)}"
    if name and not meant and path.startswith("model."):  # a field of the module it replaces
        hint += f"; to choose another name, replace config.{path} as a whole"
    return UnknownField(
        f"unknown field '{key}' of {part}", field=f"{path}.{key}".lstrip("."), hint=hint
    )
