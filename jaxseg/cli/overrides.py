"""Overrides on the command line, --config.FIELD=VALUE: check that they exist and have an effect."""

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_dict

from jaxseg import losses
from jaxseg.config import checks
from jaxseg.config.fields import Each
from jaxseg.config.resolve import KEPT_WHEN_TRAINED
from jaxseg.errors import ConfigError
from jaxseg.validation import SCHEMA, complete_modules

PATTERN = re.compile(r"--?(?:no)?config\.([^=]+)")
# Fields of config.dataset that only training reads -> the field that evaluation reads instead.
READ_BY_TRAINING = {
    "train_split": "dataset.val_split",
    "crop_size": "eval.crop_size",
    "resize": "eval.resize",
    "flip": "eval.flip",
    "ratio_range": "eval.scales",
    **dict.fromkeys(
        ("concat", "class_balance", "cat_max_ratio", "class_crop", "vertical_flip"), ""
    ),
    **dict.fromkeys(("rotate", "rotate_degrees", "cutout", "clahe", "mosaic", "photometric"), ""),
}


def named(argv: Sequence[str]) -> list[str]:
    """Return the fields that arguments override, in their order."""
    return [found[1] for found in map(PATTERN.match, argv) if found]


def take(argv: Sequence[str], name: str) -> tuple[str | None, list[str]]:
    """Split a flag from the arguments.

    Returns:
        The flag's value as absl reads it (the last one counts, flag files included), and the other
        arguments.
    """
    values = flags.FlagValues()
    flags.DEFINE_string(name, None, "", flag_values=values)
    rest = values(list(argv), known_only=True)
    return values[name].value, rest


def check_names(config: ConfigDict, argv: Sequence[str]) -> None:
    """Check that overridden fields exist, and add those that `config` leaves to a default.

    Args:
        config: The config; missing fields are added in place.
        argv: Arguments of the command line.

    Raises:
        ConfigError: There is no such field; the error names the nearest.
    """
    for path in named(argv):
        part: Any = config
        above = ""
        for key in path.split("."):
            if not hasattr(part, "keys"):
                problem = f"--config.{path}: config.{above} is {part!r} and has no fields"
                raise ConfigError(problem, field=path)
            if key not in part and not _fill(config, argv, above, key):
                raise _unknown(config, part, above, key, path)
            part, above = part[key], f"{above}.{key}".lstrip(".")


def _part_at(config: ConfigDict, path: str) -> Any:
    return functools.reduce(lambda part, key: part[key], filter(None, path.split(".")), config)


def _fill(config: ConfigDict, argv: Sequence[str], above: str, key: str) -> bool:
    """Add a field with its default to the part at `above`; return False if it has no default."""
    full = config.copy_and_resolve_references()
    name = take(argv, f"config.{above}.name")[0] if above.startswith("losses.") else None
    if name:
        _part_at(full, above).name = name  # a new loss may come with options of its own
    complete_modules(full)
    complete, part = _part_at(full, above), _part_at(config, above)
    if key not in complete:
        return False
    default = complete[key]
    with part.unlocked():
        part[key] = config_dict.placeholder(int) if default is None else default
    return True


def _unknown(
    config: ConfigDict, part: Mapping[str, Any], above: str, key: str, path: str
) -> ConfigError:
    """Make the error for an override of a missing field; its hint shows how to add entries."""
    node = checks.find(config, above, SCHEMA) if above else SCHEMA
    if isinstance(node, Each):
        known = f" (it has {', '.join(part)})" if len(part) else ""
        example = f"--config.{above}=\"{{'{key}': {node.example}}}\""
        return ConfigError(
            f"--config.{path}: config.{above} has no entry '{key}'{known}",
            field=path,
            hint=f"all entries can be given as a whole, {example}",
        )
    owners = [name for name in losses.LOSSES if key in losses.options_of(name)]
    if above.startswith("losses.") and owners:
        return ConfigError(
            f"--config.{path}: '{key}' is an option of {', '.join(owners)}",
            field=path,
            hint=f"choose that loss with it, --config.{above}.name={owners[0]}",
        )
    known_fields = dict.fromkeys([*part, *checks.known_fields(config, above, SCHEMA)])
    error = checks.unknown_field(above, key, known_fields)
    return ConfigError(f"--config.{path}: {error.problem}", field=path, hint=error.hint)


def describe(config: ConfigDict, path: str) -> str:
    """Return what a field must be, in words; "" for an unknown field."""
    node = checks.find(config, path, SCHEMA)
    return "" if node is None else checks.describe(node)


def check_read(values: Mapping[str, Any], trained: ConfigDict, script: str) -> None:
    """Refuse overrides that evaluation and prediction of a trained model do not read.

    Args:
        values: {field: value} of the overrides.
        trained: The config of the run; an override that repeats its value is accepted.
        script: Name of the script, for the message.

    Raises:
        ConfigError: Overrides are not read; the error names all of them.
    """
    refused = {}
    for path, value in _flatten(values).items():
        if (reason := _why_unread(path)) and not _equals(value, trained, path):
            refused[path] = reason
    if refused:
        listing = "; ".join(f"--config.{path}: {reason}" for path, reason in refused.items())
        hint = f"{script} reads config.dataset, config.eval and config.precision only"
        raise ConfigError(listing, field=next(iter(refused)), hint=hint)


def _why_unread(path: str) -> str:
    """Return why an override is not read for a trained model, "" if it is."""
    top, _, rest = path.partition(".")
    if top in ("eval", "precision"):
        return ""
    if top == "dataset":
        field = rest.split(".")[0]
        if field in KEPT_WHEN_TRAINED:
            return (
                "a trained model keeps the channels, dtype, mean, std and classes of its training"
            )
        if field not in READ_BY_TRAINING:
            return ""
        instead = READ_BY_TRAINING[field]
        return "only training reads it" + (f"; use config.{instead}" if instead else "")
    if top == "model":
        return "the run determines the model"
    return "only training reads it" + (
        "; use config.eval.batch_size" if path == "batch_size" else ""
    )


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{prefix}{key}"
        nested = isinstance(value, Mapping | ConfigDict)
        flat |= _flatten(value, f"{path}.") if nested else {path: value}
    return flat


def _equals(value: Any, trained: ConfigDict, path: str) -> bool:
    part: Any = trained
    for key in path.split("."):
        if not hasattr(part, "keys") or key not in part:
            return False
        part = part[key]
    return (tuple(value) if isinstance(value, list) else value) == part
