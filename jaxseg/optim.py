"""Optimisers and learning-rate schedules from optax pieces, with PyTorch's arithmetic.

SGD and Adam add the weight decay to the gradient (coupled), AdamW adds it to the update
(decoupled). As in torch.optim, the learning rate multiplies last, so that settings published for
PyTorch can be used unchanged.
"""

import functools
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxseg.config.schema import MultiplierConfig, OptimizerConfig, ScheduleConfig
from jaxseg.errors import ConfigError
from jaxseg.registry import check_name

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("poly", "step", "cosine", "constant")


def make_optimizer(
    optimizer: OptimizerConfig, schedule: ScheduleConfig, steps: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Make the optimiser of a run.

    Args:
        optimizer: `experiment.optimizer`.
        schedule: `experiment.schedule`.
        steps: Training steps of the run.

    Returns:
        The optax transformation, and the schedule (update count -> learning rate). Initialising the
        transformation raises ConfigError if the pattern of a multiplier matches no parameter.

    Raises:
        ConfigError: The optimiser or the schedule has an unknown name.
    """
    check_name(OPTIMIZERS, optimizer.name, "optimizer", field="optimizer.name")
    rate = make_schedule(schedule, optimizer.learning_rate, steps)
    decay = _add_decay(optimizer.weight_decay, optimizer.multipliers)
    adam = optax.scale_by_adam(b1=optimizer.b1, b2=optimizer.b2, eps=optimizer.eps)
    direction = {
        "sgd": (decay, optax.trace(decay=optimizer.momentum)),
        "adam": (decay, adam),
        "adamw": (adam, decay),
    }[optimizer.name]
    clip = [optax.clip_by_global_norm(optimizer.clip_norm)] if optimizer.clip_norm else []
    scale = [_scale_by_multipliers(optimizer.multipliers), optax.scale_by_learning_rate(rate)]
    return optax.chain(*clip, *direction, *scale), rate


def make_schedule(schedule: ScheduleConfig, learning_rate: float, steps: int) -> optax.Schedule:
    """Make a learning-rate schedule with the curves of MMEngine.

    The warm-up is linear from `warmup_factor * learning_rate` at step 0 to the full rate at step
    `warmup_steps - 1`. Later steps, including `boundaries`, are counted from its end: with a
    warm-up of 1000 steps, the boundary 60000 is step 61000. With L = steps - warmup_steps - 1
    and t steps after the warm-up:

        poly      (learning_rate - end_value) * (1 - t / L) ** power + end_value
        cosine    end_value + (learning_rate - end_value) * (1 + cos(pi * t / (L + 1))) / 2
        step      learning_rate * decay ** (number of boundaries <= t)
        constant  learning_rate

    Args:
        schedule: `experiment.schedule`.
        learning_rate: Peak learning rate.
        steps: Training steps of the run.

    Returns:
        A function of the update count (int scalar) that returns the learning rate.

    Raises:
        ConfigError: The schedule has an unknown name.
    """
    check_name(SCHEDULES, schedule.name, "schedule", field="schedule.name")
    length = max(steps - schedule.warmup_steps - 1, 1)
    if schedule.name == "poly":
        main = functools.partial(
            _poly, start=learning_rate, end=schedule.end_value, power=schedule.power, length=length
        )
    elif schedule.name == "step":
        drops = {int(boundary): schedule.decay for boundary in schedule.boundaries}
        main = optax.piecewise_constant_schedule(learning_rate, drops)
    elif schedule.name == "cosine":
        alpha = schedule.end_value / learning_rate
        main = optax.cosine_decay_schedule(learning_rate, length + 1, alpha=alpha)
    else:
        main = optax.constant_schedule(learning_rate)
    if not schedule.warmup_steps:
        return main
    start = schedule.warmup_factor * learning_rate
    transition = max(schedule.warmup_steps - 1, 1)
    warmup = optax.linear_schedule(start, learning_rate, transition_steps=transition)
    return optax.join_schedules([warmup, main], [schedule.warmup_steps])


def _poly(count: jax.Array, *, start: float, end: float, power: float, length: int) -> jax.Array:
    # Not optax's schedule: its 1 - count / length, once compiled, can end just below 0, and a
    # fractional power of that is NaN.
    remaining = (length - jnp.clip(count, 0, length)) / length
    return (start - end) * remaining**power + end


def parameter_paths(params: Any) -> list[str]:
    """Return the path 'a/b/c' of every leaf, in tree order, to search patterns in."""
    return [_path(keys) for keys, _ in jax.tree_util.tree_leaves_with_path(params)]


def _path(keys: tuple[Any, ...]) -> str:
    return "/".join(str(getattr(key, "key", key)) for key in keys)


def _factor(multipliers: Mapping[str, MultiplierConfig], path: str, kind: str) -> float:
    """Return the product of the factors `kind` of all rules that match `path`, in any order."""
    factor = 1.0
    for rule in multipliers.values():
        if re.search(rule.pattern, path):
            factor *= getattr(rule, kind)
    return factor


def _add_decay(
    weight_decay: float, multipliers: Mapping[str, MultiplierConfig]
) -> optax.GradientTransformation:
    def decay(keys: tuple[Any, ...], update: jax.Array, param: jax.Array) -> jax.Array:
        rate = weight_decay * _factor(multipliers, _path(keys), "weight_decay")
        return update + rate * param if rate else update

    return optax.stateless(
        lambda updates, params: jax.tree_util.tree_map_with_path(decay, updates, params)
    )


def _scale_by_multipliers(
    multipliers: Mapping[str, MultiplierConfig],
) -> optax.GradientTransformation:
    def init(params: optax.Params) -> optax.OptState:
        paths = parameter_paths(params)
        for label, rule in multipliers.items():
            if not any(re.search(rule.pattern, path) for path in paths):
                field = f"optimizer.multipliers.{label}.pattern"
                raise ConfigError(
                    f"config.{field}={rule.pattern!r} matches none of the {len(paths)} parameters",
                    field=field,
                    hint=f"their paths look like {paths[0]!r} and {paths[-1]!r}",
                )
        return optax.EmptyState()

    def scale(keys: tuple[Any, ...], update: jax.Array) -> jax.Array:
        factor = _factor(multipliers, _path(keys), "learning_rate")
        return update if factor == 1.0 else factor * update

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        del params
        return jax.tree_util.tree_map_with_path(scale, updates), state

    return optax.GradientTransformation(init, update)


def frozen_statistics(
    multipliers: Mapping[str, MultiplierConfig], variables: Mapping[str, Any]
) -> tuple[str, ...]:
    """Find the modules whose running statistics are frozen.

    These are the modules whose parameters are all frozen (learning rate factor 0), and those for
    which a rule sets `freeze_statistics`.

    Args:
        multipliers: `experiment.optimizer.multipliers`. A rule's `freeze_statistics`, if not None,
            takes precedence over its learning rate.
        variables: The model's variables or their shapes, {'params', 'batch_stats', ...}.

    Returns:
        Sorted paths of modules, 'a/b/c'.
    """
    siblings: dict[str, list[str]] = {}
    for path in parameter_paths(variables["params"]):
        siblings.setdefault(path.rpartition("/")[0], []).append(path)
    frozen = set()
    for path in parameter_paths({key: tree for key, tree in variables.items() if key != "params"}):
        own = path.partition("/")[2]  # without its collection
        module = own.rpartition("/")[0]
        # EMA's bases have no parameters next to them.
        if _is_frozen(multipliers, siblings.get(module, [own])):
            frozen.add(module)
    return tuple(sorted(frozen))


def _is_frozen(multipliers: Mapping[str, MultiplierConfig], paths: list[str]) -> bool:
    """Whether the statistics next to the parameters `paths` are frozen."""
    choices = [
        rule.freeze_statistics
        for rule in multipliers.values()
        if rule.freeze_statistics is not None
        and any(re.search(rule.pattern, path) for path in paths)
    ]
    if choices:
        return all(choices)
    return all(_factor(multipliers, path, "learning_rate") == 0 for path in paths)
