"""The training step that every device runs, and `make_step`, which maps it over the devices.

Apart from the loop around it, so that it needs neither the libraries of data nor those of
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
# Folded into the step's key: Flax does not fold in the names of streams, so each needs its own key.
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
    """Run one step on one device's part of the batch, under a map with the axis 'batch'; pure.

    A step whose loss, gradient or rate is not finite leaves all but `step` and `loss_scale` as it
    was; its metric `finite` is 0.

    Args:
        state: Equal on every device.
        batch: image [B, H, W, C] uint8, uint16 or float32; label [B, H, W] of any integer type, 255
            = ignore; size [B, 2] int32, (height, width) in pixels of the image without its padding.
        model: A Segmentor, or anything with its `apply`.
        loss: Made by `losses.make_loss` with the axis 'batch'.
        optimizer: Transforms the gradients.
        schedule: Update count -> learning rate, for the metrics; the optimizer has its own.
        policy: Precision of the model.
        mean: Mean per channel [C], in the images' own units.
        std: Standard deviation per channel [C], in the same units.

    Returns:
        The next state and the metrics: loss, loss_<label>, lr, grad_norm, scale, finite, skipped;
        float32 scalars. Both are equal on every device.
    """
    images = normalize(batch["image"], mean, std, batch["size"])
    label = batch["label"].astype(jnp.int32)
    # Layers fold the sample's number in.
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

    # The loss is already that of the global batch, and the transpose of its psum sums the devices'
    # equal cotangents: each device gets D times its share of the gradient, so the mean over
    # devices, not the sum, is the gradient.
    gradients, (value, parts, model_state) = jax.grad(scaled_loss, has_aux=True)(state.params)
    # Statistics and loss are equal on all devices except for losses that select pixels per device
    # (OHEM); out_axes=None needs them equal.
    gradients, value, parts, model_state = jax.lax.pmean(
        (gradients, value, parts, model_state), AXIS
    )
    if policy.uses_loss_scaling:
        gradients = jax.tree.map(lambda g: g / scale, gradients)
    norm = optax.tree.norm(gradients)
    # The optimiser's own count stands still on overflow.
    rate = schedule(state.step - state.loss_scale.total_skipped)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    old = (state.params, state.model_state, state.opt_state)
    new = (optax.apply_updates(state.params, updates), model_state, opt_state)
    # Of float16 also the statistics, which overflow first. To check every leaf in every precision,
    # or the updates, makes XLA compile three times as long on CPU.
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
        """Wrap a pmap'd step, which is traced in the policy's precision of products."""
        self._step, self._policy = step, policy

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """Train on a batch [D, B, ...]; returns the next state and metrics, each float32 [D]."""
        with self._policy.matmul_precision():
            return self._step(state, batch)

    def lower(self, state: TrainState, batch: Batch) -> jax.stages.Lowered:
        """Trace the step for these shapes, to compile it ahead of time."""
        with self._policy.matmul_precision():
            return self._step.lower(state, batch)


def make_step(devices: Sequence[jax.Device] | None = None, **arguments: Any) -> MappedStep:
    """Map `train_step` over devices.

    Args:
        devices: All devices by default.
        arguments: The keyword arguments of `train_step`.

    Returns:
        A function of (state, batch [D, B, ...]) that gives (state, metrics [D]). The state is
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
