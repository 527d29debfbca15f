"""The training state: everything that one training step changes, as one pytree."""

from collections.abc import Mapping
from typing import Any

import flax
import jax
import numpy as np
import optax
from flax import struct

from jaxseg.precision import LossScale, Policy, initial_scale
from jaxseg.replication import replicate, to_host

__all__ = ["TrainState", "create", "replicate", "to_host"]


class TrainState(struct.PyTreeNode):
    """The state between two steps.

    Attributes:
        step: int32 scalar, number of batches so far, including skipped steps.
        params: The model's parameters.
        model_state: The model's other collections, {'batch_stats': ..., 'bases': ...}.
        opt_state: The optimiser's state.
        loss_scale: The loss scale and its history.
        rng: Key data, uint32 [2], equal on every device; each step folds its number into the key.
    """

    step: jax.Array | np.ndarray
    params: Any
    model_state: Any
    opt_state: Any
    loss_scale: LossScale
    rng: jax.Array

    @property
    def variables(self) -> dict[str, Any]:
        """The variables for `model.apply`."""
        return {"params": self.params, **self.model_state}

    @property
    def optimizer_items(self) -> dict[str, Any]:
        """All fields but the variables, which are read from a checkpoint only for training."""
        return {
            "step": self.step,
            "opt_state": self.opt_state,
            "loss_scale": self.loss_scale,
            "rng": self.rng,
        }

    @classmethod
    def from_items(
        cls, variables: Mapping[str, Any], optimizer_items: Mapping[str, Any]
    ) -> "TrainState":
        """Make a state, the inverse of `variables` and `optimizer_items`.

        Args:
            variables: The model's variables.
            optimizer_items: All other fields by name.

        Returns:
            The state.
        """
        model_state = dict(variables)
        return cls(params=model_state.pop("params"), model_state=model_state, **optimizer_items)


def create(
    variables: Mapping[str, Any],
    optimizer: optax.GradientTransformation,
    policy: Policy,
    seed: int,
) -> TrainState:
    """Create the state at step 0 on the host; `replicate` puts it on devices.

    Args:
        variables: A model's variables {'params', 'batch_stats', ...}.
        optimizer: Transformation of the gradients of `params`.
        policy: Determines the initial loss scale.
        seed: Seed of the run's random numbers.

    Returns:
        The state.
    """
    # In NumPy and one jit, since JAX would compile a small program for every shape.
    model_state = jax.tree.map(np.asarray, flax.core.unfreeze(dict(variables)))
    params = model_state.pop("params")
    return TrainState(
        step=np.zeros((), np.int32),
        params=params,
        model_state=model_state,
        opt_state=jax.jit(optimizer.init)(params),
        loss_scale=initial_scale(policy),
        rng=jax.random.key_data(jax.random.key(seed)),
    )
