"""The training step that every device runs, and `make_step`, which maps it over them.

Apart from the loop around it, so that it needs neither the data's nor the checkpoints' libraries.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxseg import precision
from jaxseg.ops import normalize
from jaxseg.training.state import TrainState

AXIS = "batch"
POINTS = 1  # folded into the step's key: Flax does not fold a stream's name in, so streams must not share one


def train_step(
    state: TrainState,
    batch: dict[str, jax.Array],
    *,
    model: Any,
    loss: Callable,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    policy: precision.Policy,
    mean: Sequence[float],
    std: Sequence[float],
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step on one device's part of the batch, under pmap with the axis 'batch'; pure.

    batch: image [B, H, W, C] uint8, label [B, H, W] of any integer type, size [B, 2] int32. The new state is equal on every
    device, so are the metrics (float32 scalars). A step whose loss, gradient or rate is not finite leaves all but `step` and
    `loss_scale` as it was; its metric `finite` is 0.
    """
    images = normalize(batch["image"], mean, std, batch["size"])
    label = batch["label"].astype(jnp.int32)
    key = jax.random.fold_in(
        jax.random.wrap_key_data(state.rng), state.step
    )  # layers fold the sample's number in
    scale = state.loss_scale.scale

    def scaled_loss(params: Any) -> tuple[jax.Array, Any]:
        (logits, out), mutated = model.apply(
            {"params": params, **state.model_state}, images, train=True,
            mutable=list(state.model_state), rngs={"dropout": key, "points": jax.random.fold_in(key, POINTS)},
        )  # fmt: skip
        value, parts = loss(logits, out, label)
        return value * scale, (value, parts, mutated)

    # The loss is already that of the global batch, and the transpose of its psum sums the devices' equal cotangents: what
    # each device gets is D times its share of the gradient, so the mean over devices, not the sum, is the gradient.
    gradients, (value, parts, model_state) = jax.grad(scaled_loss, has_aux=True)(state.params)
    # Statistics and loss are equal on all devices but for what selects per device (OHEM); out_axes=None needs them equal.
    gradients, value, parts, model_state = jax.lax.pmean(
        (gradients, value, parts, model_state), AXIS
    )
    gradients = jax.tree.map(lambda g: g / scale, gradients) if policy.scaled else gradients
    norm = optax.tree.norm(gradients)
    rate = schedule(
        state.step - state.loss_scale.total_skipped
    )  # the optimiser's own count stands still on overflow
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    old = (state.params, state.model_state, state.opt_state)
    new = (optax.apply_updates(state.params, updates), model_state, opt_state)
    # Of float16 also the statistics, which overflow first. To look at every leaf in every precision, or at the updates, makes
    # XLA compile three times as long on CPU.
    finite = jnp.isfinite(value) & jnp.isfinite(norm) & jnp.isfinite(rate)
    if policy.scaled:
        finite &= precision.all_finite(model_state) if jax.tree.leaves(model_state) else True
    new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
    loss_scale = precision.adjust(state.loss_scale, finite, policy)
    metrics = {
        "loss": value,
        "lr": rate,
        "grad_norm": norm,
        "scale": scale,
        "finite": finite,
        "skipped": loss_scale.skipped,
    }
    metrics |= {f"loss_{name}": part for name, part in parts.items()}
    params, model_state, opt_state = new
    state = state.replace(
        step=state.step + 1,
        params=params,
        model_state=model_state,
        opt_state=opt_state,
        loss_scale=loss_scale,
    )
    return state, jax.tree.map(jnp.float32, metrics)


def make_step(devices: Sequence[jax.Device] | None = None, **pieces: Any) -> Callable:
    """`train_step` with its `pieces` over `devices` (default: all): (state, batch [D, B, ...]) -> (state, metrics [D]).

    The function has jit's `lower(state, batch)`, for what compiles it ahead of time.
    """
    step = jax.pmap(
        functools.partial(train_step, **pieces), axis_name=AXIS, in_axes=(None, 0), out_axes=(None, 0),
        donate_argnums=0, devices=devices,
    )  # fmt: skip

    def call(
        state: TrainState, batch: dict[str, np.ndarray]
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        with pieces["policy"].matmul_precision():
            return step(state, batch)

    def lower(state: TrainState, batch: dict[str, np.ndarray]) -> jax.stages.Lowered:
        with pieces["policy"].matmul_precision():
            return step.lower(state, batch)

    call.lower = lower
    return call
