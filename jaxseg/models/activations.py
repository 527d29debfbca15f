"""Activations by name, and PReLU, which has parameters."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseg.models.initializers import Initializer
from jaxseg.ops import per_channel


class PReLU(nn.Module):
    """Leaky ReLU with a learned slope for each channel (arXiv:1502.01852)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the activation to x [..., C]."""
        slope = self.param("weight", Initializer("constant", 0.25), x.shape[-1:]).astype(x.dtype)
        return jnp.where(x >= 0, x, x * per_channel(slope, x.ndim))


def identity(x: jax.Array) -> jax.Array:
    """Return x."""
    return x


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": nn.relu,
    "relu6": nn.relu6,
    "hard_swish": nn.hard_swish,
    "hard_sigmoid": nn.hard_sigmoid,
    "sigmoid": nn.sigmoid,
    "identity": identity,
}
