"""Mixed precision as one small policy: the type a model computes in, and the loss scale float16 needs.

Parameters, optimiser state, statistics, softmax, losses and metrics are float32 always. With float16 a step whose
gradients overflow is not applied: parameters, optimiser state and statistics stay as they were, and only the scale
moves (a static scale stays too; the step is counted).

`float32` means float32: XLA's default on recent GPUs multiplies in TF32 (10 bits of mantissa), so the policy asks for
full precision unless JAX_DEFAULT_MATMUL_PRECISION (for instance `tensorfloat32`, several times faster there) says
otherwise.
"""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from ml_collections import ConfigDict

from jaxseg.errors import ConfigError
from jaxseg.errors import NonFiniteError as NonFiniteError  # its earlier place

PRECISIONS = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}
INITIAL_SCALE = 2.0**15
GROWTH_INTERVAL = 2000  # finite steps in a row after which a dynamic scale doubles
LARGEST_SCALE = 2.0**24


@dataclasses.dataclass(frozen=True)
class Policy:
    """What a run computes in. `static_scale` 0 is a dynamic scale; only float16 scales the loss at all."""

    name: str
    dtype: jnp.dtype
    static_scale: float = 0.0

    @property
    def scaled(self) -> bool:
        """Whether overflow is expected and handled, which is so for float16 only."""
        return self.name == "float16"

    def matmul_precision(self) -> contextlib.AbstractContextManager:
        """The context to trace a model in (see the head of this file)."""
        if self.name == "float32" and jax.config.jax_default_matmul_precision is None:
            return jax.default_matmul_precision("float32")
        return contextlib.nullcontext()


class LossScale(struct.PyTreeNode):
    """The loss scale and its history; all scalars, equal on every device."""

    scale: jax.Array  # float32
    good_steps: jax.Array  # int32: finite steps since the scale last moved
    skipped: jax.Array  # int32: overflowing steps in a row
    total_skipped: jax.Array  # int32: overflowing steps of the whole run


def make_policy(config: ConfigDict) -> Policy:
    """The policy of `config.precision` and `config.loss_scale` (0 = dynamic; read for float16 only)."""
    if config.precision not in PRECISIONS:
        raise ConfigError(
            f"config.precision is {config.precision!r}; known: {', '.join(PRECISIONS)}"
        )
    scale = float(config.get("loss_scale", 0.0))
    if scale < 0:
        raise ConfigError(
            f"config.loss_scale is {scale}; give 0 for a dynamic scale or a positive number"
        )
    return Policy(config.precision, PRECISIONS[config.precision], scale)


def initial_scale(policy: Policy) -> LossScale:
    """The loss scale a run begins with: 1 unless float16."""
    scale = (policy.static_scale or INITIAL_SCALE) if policy.scaled else 1.0
    zero = np.zeros((), np.int32)
    return LossScale(np.float32(scale), zero, zero, zero)


def all_finite(tree: object) -> jax.Array:
    """bool scalar: no leaf holds an inf or a nan."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def adjust(state: LossScale, finite: jax.Array, policy: Policy) -> LossScale:
    """The scale after a step: halved on overflow, doubled after `GROWTH_INTERVAL` good steps, if it is dynamic."""
    good = jnp.where(finite, state.good_steps + 1, 0)
    scale = state.scale
    if policy.scaled and not policy.static_scale:
        grow = good >= GROWTH_INTERVAL
        larger = jnp.where(grow, jnp.minimum(scale * 2.0, LARGEST_SCALE), scale)
        scale = jnp.where(finite, larger, jnp.maximum(scale / 2.0, 2.0**-14))
        good = jnp.where(grow, 0, good)
    missed = jnp.where(finite, 0, 1)
    return LossScale(scale, good, (state.skipped + 1) * missed, state.total_skipped + missed)
