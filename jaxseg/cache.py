"""Where jaxseg keeps what outlives a run: $JAXSEG_CACHE, else ~/.cache/jaxseg."""

import os
from pathlib import Path

import jax

from jaxseg.files import expand


def cache_dir() -> Path:
    """The user's cache folder; not created here."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return expand(os.environ.get("JAXSEG_CACHE") or Path(base) / "jaxseg")


def enable_compilation_cache() -> str:
    """Turn JAX's persistent compilation cache on and return its folder.

    A folder that JAX was already given (JAX_COMPILATION_CACHE_DIR) is kept. A second start of the same program on the
    same devices then reads its compiled code instead of compiling for seconds to minutes.
    """
    folder = jax.config.jax_compilation_cache_dir
    if not folder:
        folder = str(cache_dir() / "xla")
        jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return folder
