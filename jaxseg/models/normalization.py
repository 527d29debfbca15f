"""Batch normalisation with PyTorch's running statistics, across devices."""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxseg.errors import ConfigError
from jaxseg.models.initializers import ONES, ZEROS, Initializer
from jaxseg.ops import per_channel

FEW_VALUES = 16384  # per channel and device: a second pass over this few costs little


def _single_value_error(module: str, shape: tuple[int, ...]) -> ConfigError:
    """Make the error for a norm whose running variance, a divisor, would decay to 0."""
    size = "x".join(map(str, shape[1:-1]))
    return ConfigError(
        f"batch norm at {module} has only 1 value per channel to normalise in training (one sample "
        f"of {size} on all devices), so its variance is 0",
        field="batch_size",
        hint="train on 2 samples or more at once (batch_size=2) or, if the image is small, with a "
        "larger dataset.crop_size",
    )


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last; statistics are float32.

    As in PyTorch, the batch is normalised with the biased variance, and the running variance is
    updated with the unbiased one. Moments are computed about the running mean, so that a single
    pass is accurate. Small maps, whose few values may be close together and far from the running
    mean, use a second pass.

    Attributes:
        momentum: Share of the old running statistics that stays at each step.
        epsilon: Added to the variance.
        axis_name: Mapped axis over which statistics are shared; None for a single device.
        dtype: Type of the result.
        scale_init: Initialiser of the scale.
        frozen: Paths 'a/b/c' of the modules that use their running statistics in training and do
            not update them.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    axis_name: str | None = None
    dtype: DTypeLike = jnp.float32
    scale_init: Initializer = ONES
    frozen: tuple[str, ...] = ()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Normalise x [..., C] with the batch's statistics in training, else the running ones.

        Raises:
            ConfigError: In training, a channel has only one value on all devices.
        """
        channels = x.shape[-1]
        scale = self.param("scale", self.scale_init, (channels,))
        bias = self.param("bias", ZEROS, (channels,))
        running_mean = self.variable("batch_stats", "mean", ZEROS, None, (channels,))
        running_var = self.variable("batch_stats", "var", ONES, None, (channels,))
        mean, var = running_mean.value, running_var.value
        if train and "/".join(self.path) not in self.frozen:
            mean, var, count = self._batch_moments(x, mean)
            if not self.is_initializing():
                unbiased = var * (count / max(count - 1, 1))
                kept = self.momentum
                running_mean.value = kept * running_mean.value + (1 - kept) * mean
                running_var.value = kept * running_var.value + (1 - kept) * unbiased
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        mean, factor, bias = (per_channel(v, x.ndim) for v in (mean, factor, bias))
        normalised = (x.astype(jnp.float32) - mean) * factor + bias
        return normalised.astype(self.dtype)

    def _batch_moments(
        self, x: jax.Array, running_mean: jax.Array
    ) -> tuple[jax.Array, jax.Array, int]:
        """Mean and biased variance [C] of the values of all devices, and their number."""
        axis_name = None if self.is_initializing() else self.axis_name
        axes = tuple(range(x.ndim - 1))
        count = math.prod(x.shape[:-1])
        about = running_mean
        if count <= FEW_VALUES:
            about = x.astype(jnp.float32).mean(axes)
            about = about if axis_name is None else jax.lax.pmean(about, axis_name)
        shift = jax.lax.stop_gradient(about)
        centred = x.astype(jnp.float32) - per_channel(shift, x.ndim)
        moments = jnp.stack([centred.mean(axes), jnp.square(centred).mean(axes)])
        if axis_name is not None:
            moments = jax.lax.pmean(moments, axis_name)
            count *= jax.lax.axis_size(axis_name)
        if count == 1 and not self.is_initializing():
            raise _single_value_error("/".join(self.path), x.shape)
        mean = moments[0] + shift
        var = jnp.maximum(moments[1] - jnp.square(moments[0]), 0.0)
        return mean, var, count
