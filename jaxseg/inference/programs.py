"""Compiled programs: how many input shapes are compiled and kept is logged and bounded."""

import logging
from collections.abc import Callable
from typing import Any

import jax

log = logging.getLogger(__name__)

MAX_PROGRAMS = 64  # compiled shapes that are kept


class BoundedJitCache:
    """A compiled function that logs each new input shape and keeps a limited number of them.

    Whole images compile once for each image size. Padding to fewer sizes would change the scores of
    every model that pools globally, so sizes stay exact; sliding windows have a single size.
    """

    def __init__(
        self, make: Callable[[], Callable[..., Any]], name: str, limit: int = MAX_PROGRAMS
    ):
        """Wrap the function that `make` returns.

        Args:
            make: Returns the function, freshly wrapped by `jax.jit` or `jax.pmap`.
            name: What the inputs are, for the log.
            limit: Number of shapes after which `make` is called anew, which frees the compiled
                code.
        """
        self._make = make
        self._name = name
        self._limit = limit
        self._program = make()
        self._seen: set[tuple[Any, ...]] = set()

    def __call__(self, variables: Any, *arrays: Any, **static: Any) -> Any:
        """Call the function; new shapes of `arrays` or values of `static` compile it."""
        key = (*(array.shape for array in jax.tree.leaves(arrays)), *static.values())
        if key not in self._seen:
            if len(self._seen) >= self._limit:
                self._program = self._make()
                self._seen.clear()
            self._seen.add(key)
            shape = " -> ".join(map(str, key))
            log.info("%s: compiling for shape %s (%d in use)", self._name, shape, len(self._seen))
        return self._program(variables, *arrays, **static)
