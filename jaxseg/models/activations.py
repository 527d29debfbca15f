"""Activations by name, and the one with parameters of its own."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseg.models.initializers import Initializer
from jaxseg.ops import per_channel


class PReLU(nn.Module):
    """Leaky ReLU with one learned slope a channel (arXiv:1502.01852)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        slope = self.param("weight", Initializer("constant", 0.25), x.shape[-1:]).astype(x.dtype)
        return jnp.where(x >= 0, x, x * per_channel(slope, x.ndim))


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": nn.relu,
    "relu6": nn.relu6,
    "hard_swish": nn.hard_swish,
    "hard_sigmoid": nn.hard_sigmoid,
    "sigmoid": nn.sigmoid,
    "identity": lambda x: x,
}
