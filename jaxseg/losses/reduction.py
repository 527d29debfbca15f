"""Sums, masks and weights that the losses share."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxseg.constants import IGNORE
from jaxseg.errors import ConfigError
from jaxseg.ops import per_channel


def total(x: jax.Array, axis_name: str | None) -> jax.Array:
    """Return the sum of all elements, over the devices of `axis_name` if it is not None."""
    x = jnp.sum(x)
    return x if axis_name is None else jax.lax.psum(x, axis_name)


def one_hot(label: jax.Array, classes: int) -> jax.Array:
    """Return labels int [...] as bool [..., K], all False where ignored."""
    return label[..., None] == per_channel(jnp.arange(classes), label.ndim + 1)


def class_weights(class_weight: Sequence[float], classes: int) -> jax.Array:
    """Return class weights as float32 [K], ones for an empty sequence.

    Args:
        class_weight: One weight per class, or () for none.
        classes: Number of classes K.

    Returns:
        float32 [K].

    Raises:
        ConfigError: The number of weights is neither 0 nor K.
    """
    if len(class_weight) not in (0, classes):
        raise ConfigError(
            f"class_weight has {len(class_weight)} values for {classes} classes",
            field="class_weight",
            hint="give one per class, or none",
        )
    return jnp.asarray(class_weight or [1.0] * classes, jnp.float32)


def mean_over_pixels(
    loss: jax.Array, label: jax.Array, average: str, axis_name: str | None
) -> jax.Array:
    """Average over pixels.

    Args:
        loss: Loss of each pixel, 0 where ignored; may have a further axis for classes.
        label: int, 255 = ignore.
        average: The sum is divided by the number of all pixels ('all') or of those that are not
            ignored ('valid').
        axis_name: Mapped axis over whose devices pixels are summed and counted.

    Returns:
        float32 scalar.

    Raises:
        ConfigError: `average` is neither.
    """
    if average not in ("all", "valid"):
        raise ConfigError(
            f"Unknown average '{average}' of a loss: 'all' or 'valid'.", field="average"
        )
    count = label != IGNORE if average == "valid" else jnp.ones_like(label)
    return total(loss, axis_name) / jnp.maximum(total(count, axis_name), 1)


def mean_over_classes(
    loss: jax.Array, class_weight: Sequence[float], axis_name: str | None
) -> jax.Array:
    """Average a loss [B, K] over samples and classes; class weights do not change the divisor."""
    count = total(jnp.ones_like(loss), axis_name)
    return total(loss * class_weights(class_weight, loss.shape[-1])[None, :], axis_name) / count
