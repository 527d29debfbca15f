"""Overrides on the command line, --config.FIELD=VALUE: whether their fields exist, and whether a script reads them."""

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_dict

from jaxseg import losses
from jaxseg.config import fields, schema
from jaxseg.errors import ConfigError

PATTERN = re.compile(r"--?(?:no)?config\.([^=]+)")
OF_RUN = (
    "channels",
    "dtype",
    "image_mean",
    "image_std",
    "classes",
)  # what the network was trained with
# Fields of config.dataset that only training reads -> what evaluation reads in their place.
OF_TRAINING = {
    "train_split": "dataset.val_split", "crop_size": "eval.crop_size", "resize": "eval.resize", "flip": "eval.flip",
    "ratio_range": "eval.scales",
    **dict.fromkeys(("concat", "class_balance", "cat_max_ratio", "class_crop", "vertical_flip", "rotate"), ""),
    **dict.fromkeys(("rotate_degrees", "cutout", "clahe", "mosaic", "photometric"), ""),
}  # fmt: skip


def named(argv: Sequence[str]) -> list[str]:
    """The fields that arguments override, in their order."""
    return [found[1] for found in map(PATTERN.match, argv) if found]


def take(argv: Sequence[str], name: str) -> tuple[str | None, list[str]]:
    """The value of a flag as absl reads it (the last counts, flag files too), and the arguments without the flag."""
    values = flags.FlagValues()
    flags.DEFINE_string(name, None, "", flag_values=values)
    rest = values(list(argv), known_only=True)
    return values[name].value, rest


def check_names(config: ConfigDict, argv: Sequence[str]) -> None:
    """Check that the fields of overrides exist; those that `config` leaves to a default are filled in.

    Raises:
        ConfigError: there is no such field; with the one that was meant.
    """
    for path in named(argv):
        part, above = config, ""
        for key in path.split("."):
            if not hasattr(part, "keys"):
                raise ConfigError(
                    f"--config.{path}: config.{above} is {part!r} and has no fields", field=path
                )
            if key not in part and not _fill(config, argv, above, key):
                raise _unknown(config, part, above, key, path)
            part, above = part[key], f"{above}.{key}".lstrip(".")


def _fill(config: ConfigDict, argv: Sequence[str], above: str, key: str) -> bool:
    """Whether a field that the part at `above` does not state has a default, which it then states."""
    full = config.copy_and_resolve_references()
    part, stated = (
        functools.reduce(lambda p, step: p[step], filter(None, above.split(".")), c)
        for c in (full, config)
    )
    if above.startswith("losses.") and (name := take(argv, f"config.{above}.name")[0]):
        part.name = name  # whose options can be overridden together with it
    fields.complete_modules(full)
    if key not in part:
        return False
    part, default = stated, part[key]
    with part.unlocked():
        part[key] = config_dict.placeholder(int) if default is None else default
    return True


def _unknown(config: ConfigDict, part: Mapping, above: str, key: str, path: str) -> ConfigError:
    """The error for an override of a field that is not there; entries and options that may be given say how."""
    node = fields.find(config, above) if above else schema.SCHEMA
    if isinstance(node, schema.Each):
        known = f" (it has {', '.join(part)})" if len(part) else ""
        return ConfigError(
            f"--config.{path}: config.{above} has no entry '{key}'{known}", field=path,
            hint=f'all entries can be given as a whole, --config.{above}="{{\'{key}\': {node.example}}}"',
        )  # fmt: skip
    owners = [name for name in losses.LOSSES if key in losses.options_of(name)]
    if above.startswith("losses.") and owners:
        return ConfigError(
            f"--config.{path}: '{key}' is an option of {', '.join(owners)}", field=path,
            hint=f"choose that loss with it, --config.{above}.name={owners[0]}",
        )  # fmt: skip
    error = fields.unknown_field(above, key, dict.fromkeys([*part, *fields.known(config, above)]))
    return ConfigError(f"--config.{path}: {error.problem}", field=path, hint=error.hint)


def describe(config: ConfigDict, path: str) -> str:
    """What a field must be, in words; '' for one that is not described."""
    node = fields.find(config, path)
    return "" if node is None else fields.describe(node)


def check_read(values: Mapping[str, Any], trained: ConfigDict, script: str) -> None:
    """Refuse overrides that evaluation and prediction of a trained model do not read.

    Args:
        values: field -> value, of the overrides given.
        trained: the config of the run; an override that says the same is harmless.
        script: who asks, for the message.

    Raises:
        ConfigError: about the first field; the message names them all.
    """
    refused = {}
    for path, value in _flat(values).items():
        if (reason := _unread(path)) and not _same(value, trained, path):
            refused[path] = reason
    if refused:
        listing = "; ".join(f"--config.{path}: {reason}" for path, reason in refused.items())
        hint = f"{script} reads config.dataset (of the data), config.eval and config.precision"
        raise ConfigError(listing, field=next(iter(refused)), hint=hint)


def _unread(path: str) -> str:
    """Why an override is not read for a trained model, '' if it is."""
    top, _, rest = path.partition(".")
    if top in ("eval", "precision"):
        return ""
    if top == "dataset":
        if rest.split(".")[0] in OF_RUN:
            return "the network keeps the channels, dtype, mean, std and classes that it was trained with"
        instead = OF_TRAINING.get(rest.split(".")[0])
        return (
            ""
            if instead is None
            else "only training reads it" + (f"; use config.{instead}" if instead else "")
        )
    if top == "model":
        return "the model is that of the run"
    return "only training reads it" + (
        "; use config.eval.batch_size" if path == "batch_size" else ""
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in values.items():
        path = f"{prefix}{key}"
        flat |= (
            _flat(value, f"{path}.") if isinstance(value, Mapping | ConfigDict) else {path: value}
        )
    return flat


def _same(value: Any, trained: ConfigDict, path: str) -> bool:
    part: Any = trained
    for key in path.split("."):
        if not hasattr(part, "keys") or key not in part:
            return False
        part = part[key]
    return (tuple(value) if isinstance(value, list) else value) == part
