"""Metrics of the steps between two log lines: averaged, or refused if training diverged."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxseg.errors import NonFiniteError
from jaxseg.precision import Policy

# Number of float16 steps in a row that may overflow before a run stops: steps with overflowing
# gradients, and steps whose loss is not finite, which only a smaller dynamic scale could repair.
MAX_SKIPPED = 50
MAX_SKIPPED_LOSS = 5


def check_finite_and_average(
    rows: Sequence[dict[str, Any]],
    first: int,
    names: Callable[[int], Sequence[object]],
    policy: Policy,
    *,
    last: bool = False,
) -> dict[str, float]:
    """Check the metrics of consecutive steps and average them.

    With loss scaling, overflowing gradients are expected, and only more than MAX_SKIPPED in a row
    are an error. A loss that is not finite is an error too, unless later steps with a smaller
    dynamic scale may repair it.

    Args:
        rows: Metrics of each step, on the host; arrays are equal on all devices.
        first: Index of the first step's batch.
        names: Returns the names of the files of a batch.
        policy: The run's precision.
        last: Whether the run ends with these steps.

    Returns:
        The mean losses of the finite steps, and the other metrics of the last finite step; with
        loss scaling also 'overflowed', the number of skipped steps.

    Raises:
        NonFiniteError: A step is not finite; the error names the files of its batch.
    """
    steps = [{key: float(np.ravel(value)[0]) for key, value in row.items()} for row in rows]
    for offset, step in enumerate(steps):
        is_final = last and offset == len(steps) - 1
        if not step["finite"] and not _may_recover(step, policy, is_final):
            raise _non_finite_error(step, first + offset, names(first + offset), policy)
    good = [step for step in steps if step["finite"]] or steps[-1:]
    averages = {
        key: sum(step[key] for step in good) / len(good)
        for key in good[0]
        if key.startswith("loss")
    }
    averages |= {key: good[-1][key] for key in ("lr", "grad_norm", "scale")}
    if policy.uses_loss_scaling:
        averages["overflowed"] = sum(not step["finite"] for step in steps)
    return averages


def _may_recover(step: dict[str, float], policy: Policy, is_final: bool) -> bool:
    """Whether a step that was not finite is an overflow that a smaller loss scale may end."""
    if not policy.uses_loss_scaling or step["skipped"] > MAX_SKIPPED:
        return False
    if math.isfinite(step["loss"]):
        return True
    scale_can_fall = not policy.static_scale and step["scale"] > 1
    return scale_can_fall and step["skipped"] <= MAX_SKIPPED_LOSS and not is_final


def _non_finite_error(
    step: dict[str, float], batch: int, names: Sequence[object], policy: Policy
) -> NonFiniteError:
    overflows = f" ({step['skipped']:.0f} overflowing steps in a row)"
    skipped = overflows if policy.uses_loss_scaling else ""
    full = "" if policy.name == "float32" else ", or set config.precision='float32'"
    return NonFiniteError(
        f"step {batch + 1}: loss {step['loss']}, gradient norm {step['grad_norm']}, "
        f"learning rate {step['lr']:.3g}{skipped}. Files of this batch: "
        f"{', '.join(map(str, names))}. The last checkpoint precedes this step",
        field="optimizer.learning_rate",
        hint="check these files, lower config.optimizer.learning_rate, set or lower "
        f"config.optimizer.clip_norm{full}",
    )
