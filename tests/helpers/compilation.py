"""Quick compilation, for tests whose programs run once."""

import functools
from collections.abc import Iterator

import jax
import pytest

OPTIONS = {"xla_cpu_use_fusion_emitters": False}  # gradients compile three times as fast


@functools.cache
def known_options() -> dict[str, bool]:
    """Return OPTIONS, or {} where this release of XLA does not know them."""
    try:
        jax.jit(lambda x: x + 1, compiler_options=OPTIONS)(1.0)
    except Exception:  # whatever XLA raises for an unknown option
        return {}
    return OPTIONS


@pytest.fixture(autouse=True)
def quick_compilation(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let `jax.jit` compile with OPTIONS."""
    if known_options():
        jit = functools.partial(jax.jit, compiler_options=OPTIONS)
        monkeypatch.setattr(jax, "jit", jit)
    yield
