"""Optimisers and learning-rate schedules, out of optax pieces and with PyTorch's arithmetic.

`make_optimizer(config)` gives the transformation and the schedule. SGD and Adam add the weight decay to the gradient
(coupled), AdamW to the update (decoupled); the learning rate multiplies last, as in torch.optim, so settings published
for PyTorch carry over unchanged.
"""

import functools
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from jaxseg.errors import ConfigError

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("poly", "step", "cosine", "constant")


def make_optimizer(config: ConfigDict) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optax transformation and the schedule (update count -> learning rate) of `config`.

    Reads `config.optimizer`, `config.schedule` and `config.steps`. A multiplier whose pattern matches no parameter
    raises ConfigError when the transformation is initialised.
    """
    options = config.optimizer
    schedule = make_schedule(
        steps=config.steps, learning_rate=options.learning_rate, **config.schedule.to_dict()
    )
    multipliers = {
        label: rule.to_dict() for label, rule in options.get("multipliers", ConfigDict()).items()
    }
    clip_norm = options.get("clip_norm", 0.0)
    decay = _add_decay(options.get("weight_decay", 0.0), multipliers)
    adam = optax.scale_by_adam(
        b1=options.get("b1", 0.9), b2=options.get("b2", 0.999), eps=options.get("eps", 1e-8)
    )
    if options.name == "sgd":
        direction = [decay, optax.trace(decay=options.get("momentum", 0.9))]
    elif options.name == "adam":
        direction = [decay, adam]
    elif options.name == "adamw":
        direction = [adam, decay]
    else:
        raise ConfigError(
            f"config.optimizer.name is {options.name!r}",
            field="optimizer.name",
            hint=f"known: {', '.join(OPTIMIZERS)}",
        )
    clip = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
    rate = [_scale_by_multipliers(multipliers), optax.scale_by_learning_rate(schedule)]
    return optax.chain(*clip, *direction, *rate), schedule


def make_schedule(*, steps: int, learning_rate: float, name: str = "poly", power: float = 0.9, end_value: float = 1e-4,
                  warmup_steps: int = 0, warmup_factor: float = 0.1, boundaries: tuple[int, ...] = (),
                  decay: float = 0.1) -> optax.Schedule:  # fmt: skip
    """Update count -> learning rate, equal to MMEngine's curves.

    The warm-up is linear from `warmup_factor * learning_rate` at step 0 to the full rate at step `warmup_steps - 1`.
    Everything after is counted from the warm-up's end, `boundaries` too: with a warm-up of 1000 the boundary 60000
    falls on step 61000. `poly` reaches `end_value` at the last step, `steps - 1`.
    """
    length = max(steps - warmup_steps - 1, 1)
    if name == "poly":
        main = functools.partial(
            _poly, start=learning_rate, end=end_value, power=power, length=length
        )
    elif name == "step":
        main = optax.piecewise_constant_schedule(learning_rate, {int(b): decay for b in boundaries})
    elif name == "cosine":
        main = optax.cosine_decay_schedule(
            learning_rate, length + 1, alpha=end_value / learning_rate
        )
    elif name == "constant":
        main = optax.constant_schedule(learning_rate)
    else:
        known = f"known: {', '.join(SCHEDULES)}"
        raise ConfigError(f"config.schedule.name is {name!r}", field="schedule.name", hint=known)
    if not warmup_steps:
        return main
    start = warmup_factor * learning_rate
    warmup = optax.linear_schedule(start, learning_rate, transition_steps=max(warmup_steps - 1, 1))
    return optax.join_schedules([warmup, main], [warmup_steps])


def _poly(count: jax.Array, *, start: float, end: float, power: float, length: int) -> jax.Array:
    # Not optax's: its 1 - count / length, compiled, can end just below 0, and a fractional power of that is nan.
    remaining = (length - jnp.clip(count, 0, length)) / length
    return (start - end) * remaining**power + end


def parameter_paths(params: Any) -> list[str]:
    """The 'a/b/c' path of every parameter, in tree order: what multiplier patterns are searched in."""
    return [_path(keys) for keys, _ in jax.tree_util.tree_leaves_with_path(params)]


def _path(keys: tuple) -> str:
    return "/".join(str(getattr(key, "key", key)) for key in keys)


def _factor(multipliers: Mapping[str, Mapping], path: str, kind: str) -> float:
    """The product over all rules that match `path`, so that the order of rules never matters."""
    factor = 1.0
    for rule in multipliers.values():
        if re.search(rule["pattern"], path):
            factor *= rule.get(kind, 1.0)
    return factor


def _add_decay(
    weight_decay: float, multipliers: Mapping[str, Mapping]
) -> optax.GradientTransformation:
    def decay(keys: tuple, update: jax.Array, param: jax.Array) -> jax.Array:
        rate = weight_decay * _factor(multipliers, _path(keys), "weight_decay")
        return update + rate * param if rate else update

    return optax.stateless(
        lambda updates, params: jax.tree_util.tree_map_with_path(decay, updates, params)
    )


def _scale_by_multipliers(multipliers: Mapping[str, Mapping]) -> optax.GradientTransformation:
    def check(params: optax.Params) -> optax.EmptyState:
        paths = parameter_paths(params)
        for label, rule in multipliers.items():
            if not any(re.search(rule["pattern"], path) for path in paths):
                field = f"optimizer.multipliers.{label}.pattern"
                raise ConfigError(
                    f"config.{field}={rule['pattern']!r} matches none of the {len(paths)} parameters",
                    field=field,
                    hint=f"their paths look like {paths[0]!r} and {paths[-1]!r}",
                )
        return optax.EmptyState()

    def scale(keys: tuple, update: jax.Array) -> jax.Array:
        factor = _factor(multipliers, _path(keys), "learning_rate")
        return update if factor == 1.0 else factor * update

    def update_fn(updates, state, params=None):  # noqa: ANN001, ANN202 - optax's signature
        del params
        return jax.tree_util.tree_map_with_path(scale, updates), state

    return optax.GradientTransformation(check, update_fn)


def frozen_statistics(
    multipliers: Mapping[str, Mapping], variables: Mapping[str, Any]
) -> tuple[str, ...]:
    """The modules, 'a/b/c', whose running statistics are to stay as they are: those whose parameters do.

    Args:
        multipliers: config.optimizer.multipliers. A rule's `freeze_statistics` says so whatever its learning rate.
        variables: the model's, or their shapes, {'params', 'batch_stats', ...}.
    """
    siblings: dict[str, list[str]] = {}
    for path in parameter_paths(variables["params"]):
        siblings.setdefault(path.rpartition("/")[0], []).append(path)
    frozen = []
    for path in parameter_paths({key: tree for key, tree in variables.items() if key != "params"}):
        own = path.partition("/")[2]  # without its collection
        module = own.rpartition("/")[0]
        paths = siblings.get(module, [own])  # EMA's bases have no parameters beside them
        matching = [
            rule
            for rule in multipliers.values()
            if any(re.search(rule["pattern"], one) for one in paths)
        ]
        told = [rule["freeze_statistics"] for rule in matching if "freeze_statistics" in rule]
        if (
            all(told)
            if told
            else all(_factor(multipliers, one, "learning_rate") == 0 for one in paths)
        ):
            frozen.append(module)
    return tuple(sorted(set(frozen)))
