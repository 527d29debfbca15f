"""Checks of a whole config, including the arguments of its modules and losses."""

import logging
from typing import Any

from jaxseg import losses
from jaxseg.config import checks
from jaxseg.config.defaults import CROSS_ENTROPY
from jaxseg.config.fields import Each
from jaxseg.config.resolve import Config, MutableConfig, check_fields, copy_config, has_auto_weights
from jaxseg.config.schema import LOSS_EXAMPLE, LossConfig, from_dict
from jaxseg.models.arguments import BACKBONE, HEAD, NECK, defaults_of
from jaxseg.models.build import BACKBONES, HEADS, NECKS, declared_fields

log = logging.getLogger(__name__)

# The declaration of every field, including the arguments of modules and losses.
SCHEMA: dict[str, Any] = checks.SCHEMA | {
    "model": checks.SCHEMA["model"]
    | {
        "backbone": BACKBONE,
        "neck": NECK,
        "heads": checks.SCHEMA["model"]["heads"]._replace(node=HEAD),
    },
    "losses": Each(losses.LOSS, LOSS_EXAMPLE),
}


def check_alone(config: Config) -> MutableConfig:
    """Check a config as far as possible without its data set.

    Args:
        config: The config; it is not changed.

    Returns:
        An unlocked copy of the config, with all defaults filled in and values normalised.

    Raises:
        ConfigError: A field is unknown, missing or out of range, or fields contradict each other.
    """
    config = copy_config(config)
    checks.tidy(checks.complete(config))
    _fit_losses(config.losses)
    check_fields(config, SCHEMA)
    declared_fields(config.model)
    heads = tuple(config.model.heads)
    losses.check_losses(without_auto(config.losses), config.model.num_classes, heads)
    return config


def _fit_losses(entries: Any) -> None:
    """Remove the options of a cross entropy where another loss was chosen."""
    for key, loss in entries.items() if hasattr(entries, "items") else ():
        if not hasattr(loss, "items") or loss.get("name") not in losses.LOSSES:
            continue  # `check_fields` reports it
        options = losses.options_of(loss.name)
        extra = [field for field in CROSS_ENTROPY if field in loss and field not in options]
        for field in extra:
            del loss[field]
        if extra:
            log.info(
                "config.losses.%s: %s has no option %s; the config's values are dropped",
                key,
                loss.name,
                ", ".join(extra),
            )


def without_auto(entries: Any) -> dict[str, Any]:
    """Return the losses as plain dicts, with () for class weights that are not measured yet."""
    plain = {
        key: (e if isinstance(e, LossConfig) else from_dict(LossConfig, e)).to_dict()
        for key, e in entries.items()
    }
    return {
        key: entry | {"class_weight": ()} if has_auto_weights(entry) else entry
        for key, entry in plain.items()
    }


def complete_modules(config: MutableConfig) -> MutableConfig:
    """Fill in the defaults of modules' arguments, losses' options and multipliers, in place.

    Configs with the same meaning then compare equal, whichever version wrote them.

    Args:
        config: A complete config, locked or not.

    Returns:
        The same config.
    """
    model = config.model
    parts: list[tuple[Any, Any]] = [(BACKBONES, model.backbone), (NECKS, model.neck)]
    parts += [(HEADS, head) for head in model.heads.values()]
    with config.unlocked(), config.ignore_type():
        for table, part in parts:
            if part.get("name") in table:
                checks.fill(part, defaults_of(table[part.name]))
        for loss in config.losses.values():
            if loss.get("name") in losses.LOSSES:
                checks.fill(loss, losses.defaults_of(loss.name))
        for rule in config.optimizer.multipliers.values():
            checks.fill(rule, {"learning_rate": 1.0, "weight_decay": 1.0})
            if rule.get("freeze_statistics") is None:
                rule.freeze_statistics = rule.learning_rate == 0
    return config
