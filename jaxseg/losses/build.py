"""The table of losses, the checks of their options, and the sum of an experiment's losses."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax

from jaxseg.config.defaults import AUTO, LOSS_ALIASES
from jaxseg.config.fields import (
    FACTOR,
    FLAG,
    LARGEST,
    POSITIVE,
    PROBABILITY,
    TEXT,
    Field,
    Part,
    name_of,
    whole,
)
from jaxseg.errors import ConfigError
from jaxseg.losses.pixels import SAMPLERS, cross_entropy, focal, point_cross_entropy, se_loss
from jaxseg.losses.regions import dice, lovasz, tversky
from jaxseg.ops import resize_bilinear
from jaxseg.registry import check_name, lookup

LossFunction = Callable[..., jax.Array]
Parts = dict[str, jax.Array]

# Fields of every entry of config.losses; its other fields are options of the loss.
ENTRY_FIELDS = ("name", "target", "weight")


@dataclasses.dataclass(frozen=True)
class Loss:
    """How `make_loss` calls a loss.

    Attributes:
        function: Called as function(scores, label, axis_name=..., **options).
        rank: Dimensions of the scores. Scores of rank 4, [B, h, w, K], are resized to the label's
            height and width.
        outputs: Further outputs of the model that the function takes as keyword arguments.
        settings: Settings of the model ('align_corners') that it takes as keyword arguments.
        fields: Types and ranges of options that differ from OPTIONS.
    """

    function: LossFunction
    rank: int = 4
    outputs: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def options(self) -> tuple[str, ...]:
        """Return the sorted names of the function's options."""
        supplied = {"axis_name", *self.outputs, *self.settings}
        named = [p.name for p in self._parameters()[2:] if p.kind != p.VAR_KEYWORD]
        return tuple(sorted(set(named) - supplied))

    def takes_any_option(self) -> bool:
        """Return whether the function has a parameter like **options."""
        return any(p.kind == p.VAR_KEYWORD for p in self._parameters())

    def _parameters(self) -> list[inspect.Parameter]:
        return list(inspect.signature(self.function).parameters.values())


def _between(low: int, high: int) -> Field:
    return Field(float, f"{low} or more, at most {high}", lambda x: low <= x <= high)


def _are_weights(*weights: float) -> bool:
    return not weights or (min(weights) >= 0 and 0 < max(weights) <= LARGEST)


def _are_probabilities(*values: float) -> bool:
    return bool(values) and min(values) >= 0 and max(values) <= 1


# Types and ranges of options.
OPTIONS: dict[str, Any] = {
    "average": name_of("all", "valid"),
    "sigmoid": FLAG,
    "class_weight": Field(
        float,
        f"one number per class, each 0 to {LARGEST:g} and not all 0, or 'auto', or () for none",
        _are_weights,
        length=0,
        others=(AUTO,),
    ),
    "sampler": {
        "name": name_of(*SAMPLERS),
        "min_kept": whole(1, "a whole number of pixels per sample, 1 or more"),
        "threshold": PROBABILITY._replace(words="a probability, 0 (none) to 1"),
    },
    "gamma": _between(0, 100),
    "alpha": FACTOR,
    "beta": FACTOR,
    "smooth": POSITIVE,
    "exponent": _between(1, 100),
    "masked": FLAG,
    "classes": name_of("present", "all"),
    "per_image": FLAG,
}
_FOCAL_ALPHA = Field(
    float, "0 to 1, one number or one per class", _are_probabilities, length=0, single=True
)

LOSSES: dict[str, Loss] = {
    "cross_entropy": Loss(cross_entropy),
    "point_cross_entropy": Loss(
        point_cross_entropy, rank=3, outputs=("points",), settings=("align_corners",)
    ),
    "se_loss": Loss(se_loss, rank=2),
    "focal": Loss(focal, fields={"alpha": _FOCAL_ALPHA}),
    "dice": Loss(dice),
    "tversky": Loss(tversky),
    "lovasz": Loss(lovasz),
}


def find_loss(name: str | LossFunction | Loss, field: str = "") -> Loss:
    """Look up a loss.

    Args:
        name: A key of LOSSES, a function of (scores [B, H, W, K], label [B, H, W], axis_name=None,
            **options), or a `Loss`, which describes how to call a function.
        field: The config field that names it, for the error.

    Returns:
        The loss.

    Raises:
        ConfigError: The name is unknown.
    """
    if isinstance(name, Loss):
        return name
    if callable(name):
        return Loss(name)
    known = LOSS_ALIASES.get(name, name) if isinstance(name, str) else name
    return lookup(LOSSES, known, f"loss at config.{field}" if field else "loss", field=field)


def options_of(name: str | LossFunction | Loss) -> tuple[str, ...]:
    """Return the sorted names of a loss's options: all fields but name, target and weight.

    Raises:
        ConfigError: The name is unknown.
    """
    return find_loss(name).options()


def defaults_of(name: str | LossFunction | Loss) -> dict[str, Any]:
    """Return {option: default} of a loss.

    Raises:
        ConfigError: The name is unknown.
    """
    loss = find_loss(name)
    parameters = inspect.signature(loss.function).parameters
    return {option: parameters[option].default for option in loss.options()}


# --- Checks ---------------------------------------------------------------------------------------


def _fields(part: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Return {field: node} of an entry of config.losses."""
    loss = find_loss(part.get("name", ""), f"{path}.name")
    options = {option: loss.fields.get(option, OPTIONS.get(option)) for option in loss.options()}
    return {"name": TEXT, "target": TEXT, "weight": FACTOR} | options


LOSS = Part(_fields)  # the node of an entry of config.losses


def check_losses(
    losses: Mapping[str, Any], num_classes: int | None = None, heads: Collection[str] = ()
) -> None:
    """Check names and options of losses.

    Args:
        losses: Entries by label, each a LossConfig or a mapping with name, target, weight and
            options.
        num_classes: Number of classes, None if it is not known yet.
        heads: Labels of the model's heads, whose scores have rank 4; () leaves targets unchecked.

    Raises:
        ConfigError: An option is unknown or invalid, or the loss cannot be applied to a head's
            scores.
    """
    for label, entry in losses.items():
        values = _to_dict(entry)
        name = values.get("name", "")
        field = f"losses.{label}"
        loss = find_loss(name, f"{field}.name")
        if loss.rank != 4 and (values.get("target") or label) in heads:
            raise ConfigError(
                f"config.{field}: {name} cannot be applied to the scores of a head",
                field=f"{field}.name",
                hint="choose another loss, or set its target to the output that it is for",
            )
        _check_options(field, loss, name, _options(values), num_classes)


def _check_options(
    where: str, loss: Loss, name: Any, options: Mapping[str, Any], classes: int | None
) -> None:
    known = loss.options()
    if not loss.takes_any_option():
        for option in options:
            what = f"option at config.{where} of {name}:"
            check_name(known, option, what, field=f"{where}.{option}")
    for option, choices in (("average", ("all", "valid")), ("classes", ("present", "all"))):
        if option in options and option in known:
            field = f"{where}.{option}"
            check_name(choices, options[option], f"config.{field}", field=field)
    if sampler := options.get("sampler"):
        field = f"{where}.sampler.name"
        check_name(SAMPLERS, sampler["name"], f"config.{field}", field=field)
    for option in ("class_weight", "alpha"):
        _check_length(f"{where}.{option}", options.get(option, ()), classes)


def _check_length(field: str, values: Any, classes: int | None) -> None:
    """Raise unless there is one value for all classes, one per class, or none."""
    if not isinstance(values, tuple | list) or not values:
        return
    if tuple(values) == AUTO:
        hint = "jaxseg.data.measure.measure replaces it with numbers"
        raise ConfigError(f"config.{field} is 'auto'", field=field, hint=hint)
    if classes is not None and len(values) != classes:
        weights = field.endswith("class_weight")
        raise ConfigError(
            f"config.{field} has {len(values)} values for {classes} classes",
            field=field,
            hint="give one per class" + (", 'auto', or none" if weights else ", or one for all"),
        )


# --- The sum of an experiment's losses ------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Term:
    """One entry of config.losses, ready to be computed."""

    field: str
    name: Any
    target: str
    weight: float
    loss: Loss
    function: LossFunction  # with options and settings


def make_loss(
    losses: Any,
    axis_name: str | None = None,
    *,
    num_classes: int | None = None,
    align_corners: bool | None = None,
) -> Callable[[jax.Array, Mapping[str, jax.Array], jax.Array], tuple[jax.Array, Parts]]:
    """Make the training loss: the weighted sum of several losses.

    An entry applies to the output of the model that its `target` names, by default the output with
    the entry's own label; 'decode' means `logits`. The name of an entry is a key of LOSSES, a
    function or a `Loss` (see `find_loss`).

    Args:
        losses: Entries by label, each a LossConfig or a mapping with name, target, weight and
            options; or an Experiment or a whole config, whose model then provides `num_classes` and
            `align_corners`.
        axis_name: Mapped axis of the devices that share the batch; None for a single device.
        num_classes: Number of classes, to check the number of weights; None if unknown.
        align_corners: Whether scores are resized, and points located, with aligned corners; False
            by default.

    Returns:
        A function of (logits [B, H, W, K], out, label [B, H, W] int, 255 = ignore) that returns the
        loss, a float32 scalar, and its weighted terms by label.

    Raises:
        ConfigError: A loss or an option is unknown or invalid.
    """
    if hasattr(losses, "losses"):
        model = losses.model
        num_classes = getattr(model, "num_classes", None) if num_classes is None else num_classes
        align_corners = model.align_corners if align_corners is None else align_corners
        losses = losses.losses
    check_losses(losses, num_classes)
    settings = {"align_corners": bool(align_corners)}
    terms = {label: _term(label, entry, settings, axis_name) for label, entry in losses.items()}

    def compute(
        logits: jax.Array, out: Mapping[str, jax.Array], label: jax.Array
    ) -> tuple[jax.Array, Parts]:
        parts = {
            key: _compute_term(term, logits, out, label, settings["align_corners"])
            for key, term in terms.items()
        }
        return sum(parts.values()), parts  # type: ignore[return-value]

    return compute


def _term(label: str, entry: Any, settings: Mapping[str, Any], axis_name: str | None) -> _Term:
    values = _to_dict(entry)
    loss = find_loss(values["name"])
    given = {key: settings[key] for key in loss.settings}
    function = functools.partial(loss.function, axis_name=axis_name, **given, **_options(values))
    target = values.get("target") or label
    weight = values.get("weight", 1.0)
    return _Term(f"losses.{label}", values["name"], target, weight, loss, function)


def _compute_term(
    term: _Term,
    logits: jax.Array,
    out: Mapping[str, jax.Array],
    label: jax.Array,
    align_corners: bool,
) -> jax.Array:
    """Compute one weighted loss, a scalar."""
    field, what = f"{term.field}.target", f"output for config.{term.field}"
    scores = logits if term.target == "decode" else lookup(out, term.target, what, field=field)
    if scores.ndim != term.loss.rank:
        raise ConfigError(
            f"config.{term.field}: {term.name} cannot be applied to the output '{term.target}' of "
            f"shape {list(scores.shape)}",
            field=field,
            hint=f"it takes scores with {term.loss.rank} dimensions; choose another loss or target",
        )
    if term.loss.rank == 4:
        scores = resize_bilinear(scores, label.shape[1:3], align_corners)
    others = {key: lookup(out, key, what, field=field) for key in term.loss.outputs}
    return term.weight * term.function(scores, label, **others)


def _to_dict(entry: Any) -> dict[str, Any]:
    """Return an entry's fields and options as one plain dict."""
    values = entry.to_dict() if hasattr(entry, "to_dict") else dict(entry)
    return {key: v.to_dict() if hasattr(v, "to_dict") else v for key, v in values.items()}


def _options(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in ENTRY_FIELDS}
