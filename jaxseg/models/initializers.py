"""Initialisers that both Flax and NumPy can run: compiling JAX's random bits for every layer takes most of a minute."""

import contextlib
import contextvars
import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

_DRAWN: contextvars.ContextVar[dict | None] = contextvars.ContextVar("drawn", default=None)


@contextlib.contextmanager
def recording():
    """Inside, initializers draw nothing and note themselves: {id(value): (value, initializer)}."""
    token = _DRAWN.set({})
    try:
        yield _DRAWN.get()
    finally:
        _DRAWN.reset(token)


@dataclasses.dataclass(frozen=True)
class Initializer:
    """A Flax initializer that NumPy can run as well (see `models.init_variables`: compiling JAX's is slow).

    kind: 'normal' (std = scale), 'uniform' (+-scale), 'constant', 'range' (low, high), or, from the kernel's shape [..., in, out],
    'kaiming' (normal, fan out, ReLU: MMSegmentation's default), 'xavier' (uniform), 'torch' (PyTorch's own default).
    """

    kind: str
    scale: float = 1.0
    low: float = 0.0

    def _bound(self, shape: Sequence[int]) -> float:
        receptive = math.prod(shape[:-2])
        fan_in, fan_out = receptive * shape[-2] if len(shape) > 1 else 1, receptive * shape[-1]
        formulas = {"kaiming": (2 / fan_out), "xavier": 6 / (fan_in + fan_out), "torch": 1 / fan_in}
        return self.scale * math.sqrt(formulas[self.kind]) if self.kind in formulas else self.scale

    def _draw(self, shape, constant: Callable, normal: Callable, uniform: Callable):
        if self.kind == "constant":
            return constant(shape, self.scale)
        if self.kind == "range":
            return self.low + (self.scale - self.low) * 0.5 * (uniform(shape) + 1)
        return self._bound(shape) * (
            normal(shape) if self.kind in ("normal", "kaiming") else uniform(shape)
        )

    def __call__(self, key, shape, dtype=jnp.float32):
        drawn = _DRAWN.get()
        if drawn is not None:
            value = jnp.zeros(shape, dtype)
            drawn[id(value)] = (value, self)
            return value
        normal, uniform = (
            functools.partial(jax.random.normal, key),
            functools.partial(jax.random.uniform, key),
        )
        return jnp.asarray(
            self._draw(shape, jnp.full, normal, lambda s: uniform(s, minval=-1.0, maxval=1.0)),
            dtype,
        )

    def sample(self, rng: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
        """The same distribution drawn by NumPy, float32."""
        value = self._draw(shape, np.full, rng.standard_normal, lambda s: rng.uniform(-1.0, 1.0, s))
        return np.asarray(value, np.float32)


KAIMING, TORCH, XAVIER = Initializer("kaiming"), Initializer("torch"), Initializer("xavier")
ZEROS, ONES, CLASSIFIER = (
    Initializer("constant", 0.0),
    Initializer("constant", 1.0),
    Initializer("normal", 0.01),
)
