"""Compiled functions with a limited number of input shapes."""

import logging
from collections.abc import Callable
from typing import Any

import jax

log = logging.getLogger(__name__)

MAX_PROGRAMS = 64  # number of compiled shapes to keep


class BoundedJitCache:
    """A compiled function that logs each new input shape and limits the number of compiled shapes.

    Whole images compile once for each image size. They are not padded to fewer sizes, since padding
    would change the scores of every model that pools globally. Sliding windows have a single size.
    """

    def __init__(
        self, make: Callable[[], Callable[..., Any]], name: str, limit: int = MAX_PROGRAMS
    ):
        """Wrap the function that `make` returns.

        Args:
            make: Returns the function, freshly wrapped by `jax.jit` or `jax.pmap`.
            name: Name of the inputs, for the log.
            limit: Number of shapes after which `make` is called again, to free the compiled code.
        """
        self._make = make
        self._name = name
        self._limit = limit
        self._program = make()
        self._seen: set[tuple[Any, ...]] = set()

    def __call__(self, variables: Any, *arrays: Any, **static: Any) -> Any:
        """Call the function, which compiles for new shapes of `arrays` and values of `static`."""
        key = (*(array.shape for array in jax.tree.leaves(arrays)), *static.values())
        if key not in self._seen:
            if len(self._seen) >= self._limit:
                self._program = self._make()
                self._seen.clear()
            self._seen.add(key)
            shape = " -> ".join(map(str, key))
            log.info("%s: compiling for shape %s (%d in use)", self._name, shape, len(self._seen))
        return self._program(variables, *arrays, **static)
