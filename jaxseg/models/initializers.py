"""Initialisers that both Flax and NumPy can run.

NumPy is used for whole models, since compiling JAX's random bits for every layer takes most of a
minute.
"""

import contextlib
import contextvars
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

Drawn = dict[int, tuple[jax.Array, "Initializer"]]

_DRAWN: contextvars.ContextVar[Drawn | None] = contextvars.ContextVar("drawn", default=None)


@contextlib.contextmanager
def recording() -> Iterator[Drawn]:
    """Make initializers return zeros and record themselves, within the `with` block.

    Yields:
        {id(value): (value, initializer)} of the zeros.
    """
    drawn: Drawn = {}
    token = _DRAWN.set(drawn)
    try:
        yield drawn
    finally:
        _DRAWN.reset(token)


@dataclasses.dataclass(frozen=True)
class Initializer:
    """A Flax initializer that NumPy can run too (see `models.init_variables`).

    Attributes:
        kind: The distribution: 'normal' (standard deviation `scale`), 'uniform' (-scale to scale),
            'range' (uniform from `low` to `scale`), 'constant' (`scale`), or a distribution that
            depends on the shape [..., in, out]: 'kaiming' (normal, fan out, for ReLU;
            MMSegmentation's default), 'xavier' (uniform), 'torch' (uniform, PyTorch's default).
        scale: Scale of the distribution; a factor for those that depend on the shape.
        low: Lower end of 'range'.
    """

    kind: str
    scale: float = 1.0
    low: float = 0.0

    def _bound(self, shape: Sequence[int]) -> float:
        """Standard deviation or half the width of the distribution for a shape."""
        receptive = math.prod(shape[:-2])
        fan_in = receptive * shape[-2] if len(shape) > 1 else 1
        fan_out = receptive * shape[-1] if shape else 1
        variances = {
            "kaiming": 2 / fan_out,
            "xavier": 6 / (fan_in + fan_out),
            "torch": 1 / fan_in,
        }
        if self.kind not in variances:
            return self.scale
        return self.scale * math.sqrt(variances[self.kind])

    def _draw(
        self,
        shape: Sequence[int],
        constant: Callable[..., Any],
        normal: Callable[..., Any],
        uniform: Callable[..., Any],
    ) -> Any:
        """Draw with three functions of a shape: a constant, N(0, 1) and U(-1, 1)."""
        if self.kind == "constant":
            return constant(shape, self.scale)
        if self.kind == "range":
            return self.low + (self.scale - self.low) * 0.5 * (uniform(shape) + 1)
        draw = normal if self.kind in ("normal", "kaiming") else uniform
        return self._bound(shape) * draw(shape)

    def __call__(self, key: Any, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> jax.Array:
        """Draw with JAX, with the signature of a Flax initializer; constants ignore the key."""
        drawn = _DRAWN.get()
        if drawn is not None:
            value = jnp.zeros(shape, dtype)
            drawn[id(value)] = (value, self)
            return value
        normal = functools.partial(jax.random.normal, key)
        uniform = functools.partial(jax.random.uniform, key, minval=-1.0, maxval=1.0)
        return jnp.asarray(self._draw(shape, jnp.full, normal, uniform), dtype)

    def sample(self, rng: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
        """Draw float32 values of a shape with NumPy, from the same distribution."""
        uniform = functools.partial(rng.uniform, -1.0, 1.0)
        value = self._draw(shape, np.full, rng.standard_normal, uniform)
        return np.asarray(value, np.float32)


KAIMING = Initializer("kaiming")
TORCH = Initializer("torch")
XAVIER = Initializer("xavier")
ZEROS = Initializer("constant", 0.0)
ONES = Initializer("constant", 1.0)
CLASSIFIER = Initializer("normal", 0.01)
