"""Build the components of a training step from an experiment."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax
from flax import linen as nn

from jaxseg import losses, models, optim, precision
from jaxseg.config.schema import Experiment
from jaxseg.errors import ConfigError
from jaxseg.training.step import AXIS, MappedStep, make_step


@dataclasses.dataclass(frozen=True)
class Components:
    """Model, loss, optimiser and precision of an experiment.

    Attributes:
        experiment: The experiment.
        model: Its model, for training over the mapped axis 'batch'.
        loss: The weighted sum of its losses.
        optimizer: Transformation of the gradients.
        schedule: Maps the update count to the learning rate.
        policy: Precision of the model.
    """

    experiment: Experiment
    model: nn.Module
    loss: Callable[..., Any]
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    policy: precision.Policy

    def make_step(self, devices: Sequence[jax.Device] | None = None) -> MappedStep:
        """Make the training step over these devices, all by default."""
        return make_step(
            devices,
            model=self.model,
            loss=self.loss,
            optimizer=self.optimizer,
            schedule=self.schedule,
            policy=self.policy,
            mean=np.asarray(self.experiment.dataset.image_mean, np.float32),
            std=np.asarray(self.experiment.dataset.image_std, np.float32),
        )


def build_components(experiment: Experiment) -> Components:
    """Build the components of an experiment.

    Args:
        experiment: The experiment, measured.

    Returns:
        The components.

    Raises:
        ConfigError: A loss, the optimiser or the model cannot be built, or a batch norm would have
            one value per channel to normalise.
    """
    policy = precision.make_policy(experiment.precision, experiment.loss_scale)
    optimizer, schedule = optim.make_optimizer(
        experiment.optimizer, experiment.schedule, experiment.steps
    )
    loss = losses.make_loss(experiment, axis_name=AXIS)  # first, since the model takes longer
    return Components(
        experiment=experiment,
        model=build_model(experiment, policy),
        loss=loss,
        optimizer=optimizer,
        schedule=schedule,
        policy=policy,
    )


def build_model(experiment: Experiment, policy: precision.Policy) -> nn.Module:
    """Build the model for training, with norms over all devices and frozen statistics.

    Args:
        experiment: The experiment.
        policy: Precision of the model.

    Returns:
        The model.

    Raises:
        ConfigError: A batch norm would have one value per channel to normalise.
    """
    dataset = experiment.dataset
    image_shape = (1, *dataset.crop_size, dataset.channels)
    model = models.create_model(experiment.model, dtype=policy.dtype, axis_name=AXIS)
    if rules := experiment.optimizer.multipliers:
        frozen = optim.frozen_statistics(rules, models.variable_shapes(model, image_shape))
        model = models.create_model(
            experiment.model, dtype=policy.dtype, axis_name=AXIS, frozen_statistics=frozen
        )
    if experiment.batch_size == 1:  # larger batches have more values, and tracing takes seconds
        check_batch_norm(model, image_shape)
    return model


def check_batch_norm(model: nn.Module, image_shape: tuple[int, int, int, int]) -> None:
    """Trace a forward pass in training mode, to raise errors of batch norms early.

    Args:
        model: The model, for the mapped axis 'batch'.
        image_shape: Shape (B, H, W, C) of the images on one device.

    Raises:
        ConfigError: A batch norm would have one value per channel to normalise.
    """

    def forward(variables: Any, images: jax.Array) -> Any:
        key = jax.random.key(0)
        rngs = {"dropout": key, "points": key}
        return model.apply(variables, images, train=True, mutable=list(variables), rngs=rngs)

    images = jax.ShapeDtypeStruct((1, *image_shape), np.float32)
    mapped = jax.vmap(forward, in_axes=(None, 0), axis_name=AXIS)
    jax.eval_shape(mapped, models.variable_shapes(model, image_shape), images)


def check_batch_size(batch_size: int, devices: int) -> None:
    """Check that the global batch size is a multiple of the number of devices.

    Args:
        batch_size: Global batch size.
        devices: Number of devices.

    Raises:
        ConfigError: The batch size is not a multiple.
    """
    if batch_size < 1 or batch_size % devices:
        near = max(batch_size // devices, 1) * devices
        raise ConfigError(
            f"config.batch_size={batch_size} cannot be divided over {devices} devices",
            field="batch_size",
            hint=f"{near} can",
        )
