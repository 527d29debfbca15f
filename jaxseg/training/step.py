"""The training step that every device runs, and `make_step`, which maps it over the devices.

This module is separate from the training loop, so that it needs no libraries for data or
checkpoints.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from jaxseg import precision
from jaxseg.ops import normalize
from jaxseg.training.state import TrainState

AXIS = "batch"
# Folded into the step's key. Flax does not fold in names of streams, so each needs its own key.
POINTS = 1

Batch = dict[str, np.ndarray]  # image, label, size: [D, B, ...]
Metrics = dict[str, jax.Array]


class Step(Protocol):
    """A training step over all devices."""

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """Train on a batch [D, B, ...]; returns the next state and metrics, each float32 [D]."""


def train_step(
    state: TrainState,
    batch: dict[str, jax.Array],
    *,
    model: Any,
    loss: Callable[..., Any],
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    policy: precision.Policy,
    mean: ArrayLike,
    std: ArrayLike,
) -> tuple[TrainState, Metrics]:
    """Run one step on one device's part of the batch, inside a map with the axis 'batch'.

    This is a pure function. If the loss, gradient or learning rate is not finite, only `step` and
    `loss_scale` change, and the metric `finite` is 0.

    Args:
        state: Training state, equal on every device.
        batch: image [B, H, W, C] uint8, uint16 or float32; label [B, H, W] of any integer type, 255
            = ignore; size [B, 2] int32, (height, width) in pixels of the image without its padding.
        model: A Segmentor, or anything with its `apply`.
        loss: The result of `losses.make_loss` with the axis 'batch'.
        optimizer: Transformation of the gradients.
        schedule: Maps the update count to the learning rate, for the metrics; the optimiser has its
            own.
        policy: Precision of the model.
        mean: Mean per channel [C], in the images' own units.
        std: Standard deviation per channel [C], in the same units.

    Returns:
        The next state and the metrics: loss, loss_<label>, lr, grad_norm, scale, finite, skipped;
        float32 scalars. Both are equal on every device.
    """
    images = normalize(batch["image"], mean, std, batch["size"])
    label = batch["label"].astype(jnp.int32)
    # Layers fold the index of the sample into these keys.
    key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
    rngs = {"dropout": key, "points": jax.random.fold_in(key, POINTS)}
    scale = state.loss_scale.scale

    def scaled_loss(params: Any) -> tuple[jax.Array, Any]:
        variables = {"params": params, **state.model_state}
        mutable = list(state.model_state)
        (logits, out), mutated = model.apply(
            variables, images, train=True, mutable=mutable, rngs=rngs
        )
        value, parts = loss(logits, out, label)
        return value * scale, (value, parts, mutated)

    # The loss is already the loss of the global batch. The transpose of its psum sums the equal
    # cotangents of all devices, so each device gets D times its share of the gradient, and the
    # gradient is the mean over devices, not the sum.
    gradients, (value, parts, model_state) = jax.grad(scaled_loss, has_aux=True)(state.params)
    # out_axes=None requires equal values on all devices; without this mean, losses that select
    # pixels per device (OHEM) would differ.
    gradients, value, parts, model_state = jax.lax.pmean(
        (gradients, value, parts, model_state), AXIS
    )
    if policy.uses_loss_scaling:
        gradients = jax.tree.map(lambda g: g / scale, gradients)
    norm = optax.tree.norm(gradients)
    # Skipped steps do not advance the optimiser's own count.
    rate = schedule(state.step - state.loss_scale.total_skipped)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    old = (state.params, state.model_state, state.opt_state)
    new = (optax.apply_updates(state.params, updates), model_state, opt_state)
    # In float16 the statistics overflow first, so they are checked too. Checking every leaf or the
    # updates in every precision would triple the compile time on CPU.
    finite = jnp.isfinite(value) & jnp.isfinite(norm) & jnp.isfinite(rate)
    if policy.uses_loss_scaling:
        finite &= precision.all_finite(model_state)
    params, model_state, opt_state = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
    loss_scale = precision.update_loss_scale(state.loss_scale, finite, policy)
    metrics = {"loss": value, **{f"loss_{name}": part for name, part in parts.items()}}
    metrics |= {"lr": rate, "grad_norm": norm, "scale": scale, "finite": finite}
    metrics |= {"skipped": loss_scale.skipped}
    state = TrainState(state.step + 1, params, model_state, opt_state, loss_scale, state.rng)
    return state, jax.tree.map(jnp.float32, metrics)


class MappedStep:
    """`train_step` over devices."""

    def __init__(self, step: Any, policy: precision.Policy):
        """Wrap a pmap'd step, to be traced with the policy's precision of matrix products."""
        self._step, self._policy = step, policy

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """Train on a batch [D, B, ...]; returns the next state and metrics, each float32 [D]."""
        with self._policy.matmul_precision():
            return self._step(state, batch)

    def lower(self, state: TrainState, batch: Batch) -> jax.stages.Lowered:
        """Lower the step for the shapes of these arguments, to compile it ahead of time."""
        with self._policy.matmul_precision():
            return self._step.lower(state, batch)


def make_step(devices: Sequence[jax.Device] | None = None, **arguments: Any) -> MappedStep:
    """Map `train_step` over devices.

    Args:
        devices: The devices; all by default.
        **arguments: The keyword arguments of `train_step`.

    Returns:
        A function of (state, batch [D, B, ...]) that returns (state, metrics [D]). The state is
        donated: its arrays cannot be used afterwards.
    """
    step = jax.pmap(
        functools.partial(train_step, **arguments),
        axis_name=AXIS,
        in_axes=(None, 0),
        out_axes=(None, 0),
        donate_argnums=0,
        devices=devices,
    )
    return MappedStep(step, arguments["policy"])
