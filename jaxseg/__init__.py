"""jaxseg: MMSegmentation's model zoo as small pure JAX functions.

`jaxseg.models`, `losses`, `metrics`, `optim` and `precision` need JAX, Flax and optax only. Reading
images, training, evaluation and prediction need the extra: pip install 'jaxseg[train]'.
"""

import importlib
from typing import Any

from jaxseg.errors import JaxsegError as JaxsegError

__version__ = "0.1.0"

# Names outside of the models, imported on first use: some need more libraries than the models do.
_LAZY_MODULES = (
    "benchmark",
    "checkpoint",
    "cli",
    "config",
    "convert",
    "data",
    "errors",
    "evaluation",
    "inference",
    "losses",
    "metrics",
    "models",
    "optim",
    "precision",
    "training",
    "visualize",
    "weights",
    "zoo",
)
_LAZY_NAMES = {
    "Predictor": "jaxseg.inference.predictor",
    "load_experiment": "jaxseg.experiments",
}

__all__ = ["JaxsegError", "__version__", *_LAZY_NAMES, *_LAZY_MODULES]


def __getattr__(name: str) -> Any:
    """Import a public name or a submodule (`jaxseg.losses`, ...) on first use."""
    if name not in _LAZY_NAMES and name not in _LAZY_MODULES:
        raise AttributeError(f"module 'jaxseg' has no attribute '{name}'")
    try:
        if name in _LAZY_NAMES:
            return getattr(importlib.import_module(_LAZY_NAMES[name]), name)
        return importlib.import_module(f"jaxseg.{name}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("jaxseg"):
            raise
        problem = f"jaxseg.{name} needs {error.name}: pip install 'jaxseg[train]'"
        raise ModuleNotFoundError(problem, name=error.name) from error


def __dir__() -> list[str]:
    return sorted(__all__)
