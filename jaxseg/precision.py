"""Mixed precision: the type that a model computes in, and the loss scale that float16 needs.

Parameters, optimiser state, statistics, softmax, losses and metrics are always float32. With
float16 a step whose gradients overflow is skipped: parameters, optimiser state and statistics do
not change, a dynamic scale falls, and the step is counted.

`float32` means float32: XLA's default on recent GPUs multiplies in TF32 (10 bits of mantissa), so
the policy requests full precision unless JAX_DEFAULT_MATMUL_PRECISION (for instance
`tensorfloat32`, several times faster there) says otherwise.
"""

import contextlib
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.typing import DTypeLike

from jaxseg.errors import ConfigError
from jaxseg.registry import lookup

INITIAL_SCALE = 2.0**15
SMALLEST_SCALE, LARGEST_SCALE = 2.0**-14, 2.0**24
GROWTH_INTERVAL = 2000  # finite steps in a row after which a dynamic scale doubles


@dataclasses.dataclass(frozen=True)
class Policy:
    """The types that a run computes with.

    Attributes:
        name: Key of PRECISIONS.
        dtype: Type of activations, to which parameters are cast when they are used.
        matmul: Precision to request for matrix products if the user has set no default in JAX;
            None to leave it to XLA.
        uses_loss_scaling: Overflow is expected: the loss is scaled, and steps that overflow are
            skipped.
        static_scale: Loss scale that never changes; 0 for a dynamic one.
    """

    name: str
    dtype: DTypeLike
    matmul: str | None = None
    uses_loss_scaling: bool = False
    static_scale: float = 0.0

    def matmul_precision(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context to trace a model in, which sets the precision of its products."""
        default = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
        if self.matmul is not None and default is None:
            return jax.default_matmul_precision(self.matmul)
        return contextlib.nullcontext()


PRECISIONS = {
    "float32": Policy("float32", jnp.float32, matmul="float32"),
    "bfloat16": Policy("bfloat16", jnp.bfloat16),
    "float16": Policy("float16", jnp.float16, uses_loss_scaling=True),
}


class LossScale(struct.PyTreeNode):
    """The loss scale and its history; scalars, equal on every device.

    Attributes:
        scale: float32.
        good_steps: int32, finite steps since the scale last changed.
        skipped: int32, overflowing steps in a row.
        total_skipped: int32, overflowing steps of the whole run.
    """

    scale: Any
    good_steps: Any
    skipped: Any
    total_skipped: Any


def make_policy(name: str, loss_scale: float = 0.0) -> Policy:
    """Make the policy of a precision.

    Args:
        name: 'float32', 'bfloat16' or 'float16' (`config.precision`).
        loss_scale: Static loss scale, 0 for a dynamic one (`config.loss_scale`); used by float16
            only.

    Raises:
        ConfigError: The name is unknown or the scale negative.
    """
    policy = lookup(PRECISIONS, name, "precision", field="precision")
    if loss_scale < 0:
        hint = "give 0 for a dynamic scale, or a positive number"
        raise ConfigError(f"loss_scale is {loss_scale}", field="loss_scale", hint=hint)
    return dataclasses.replace(policy, static_scale=float(loss_scale))


def initial_scale(policy: Policy) -> LossScale:
    """Return the loss scale at step 0: 1 if the policy does not scale."""
    scale = (policy.static_scale or INITIAL_SCALE) if policy.uses_loss_scaling else 1.0
    zero = np.zeros((), np.int32)
    return LossScale(np.float32(scale), zero, zero, zero)


def all_finite(tree: Any) -> jax.Array:
    """Return whether all leaves are finite, as a bool scalar; True for a tree without leaves."""
    leaves = jax.tree.leaves(tree)
    if not leaves:
        return jnp.bool_(True)
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))


def update_loss_scale(state: LossScale, finite: jax.Array, policy: Policy) -> LossScale:
    """Return the loss scale after a step.

    A dynamic scale halves on overflow and doubles after GROWTH_INTERVAL finite steps in a row.

    Args:
        state: The loss scale of the step.
        finite: bool scalar, whether the step's loss and gradients were finite.
        policy: The run's policy.
    """
    good = jnp.where(finite, state.good_steps + 1, 0)
    scale = state.scale
    if policy.uses_loss_scaling and not policy.static_scale:
        grow = good >= GROWTH_INTERVAL
        larger = jnp.where(grow, jnp.minimum(scale * 2.0, LARGEST_SCALE), scale)
        scale = jnp.where(finite, larger, jnp.maximum(scale / 2.0, SMALLEST_SCALE))
        good = jnp.where(grow, 0, good)
    skipped = jnp.where(finite, 0, state.skipped + 1)
    total_skipped = jnp.where(finite, state.total_skipped, state.total_skipped + 1)
    return LossScale(scale, good, skipped, total_skipped)
