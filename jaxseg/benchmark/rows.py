"""Conditions of measurements, and the file that collects the measurements."""

import dataclasses
import importlib
import json
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from jaxseg.benchmark.timing import Timing
from jaxseg.errors import ConfigError
from jaxseg.files import atomic_path, expand

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy")
VARIABLES = ("XLA_FLAGS", "JAX_DEFAULT_MATMUL_PRECISION")


def conditions(timing: Timing) -> dict[str, Any]:
    """Return the conditions of a measurement: device, versions, flags, load of the machine."""
    device = jax.devices()[0]
    has_affinity = hasattr(os, "sched_getaffinity")  # not on macOS and Windows
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "backend": device.client.platform_version.splitlines()[0],
        "cores": len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": {name: importlib.import_module(name).__version__ for name in LIBRARIES},
        "environment": {key: os.environ[key] for key in VARIABLES if os.environ.get(key)},
        # With a cache, compile_seconds may be the time of a cache lookup.
        "compilation_cache": bool(getattr(jax.config, "jax_compilation_cache_dir", None)),
        "timing": dataclasses.asdict(timing),
        "date": time.strftime("%Y-%m-%d %H:%M"),
    }


def append(path: str | Path, rows: Sequence[dict[str, Any]]) -> None:
    """Add rows to the JSON list in a file, which is created if it does not exist.

    Args:
        path: The file.
        rows: Rows of JSON values by name.

    Raises:
        ConfigError: The file holds something else.
        JaxsegError: The file cannot be written.
    """
    path = expand(path)
    try:
        old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    except (OSError, ValueError):
        old = None
    if not isinstance(old, list):
        problem = "does not hold a JSON list of earlier measurements"
        raise ConfigError(problem, file=path, field="path", hint="choose another file")
    with atomic_path(path) as part:
        part.write_text(json.dumps([*old, *rows], indent=1) + "\n", encoding="utf-8")
