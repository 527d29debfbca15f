"""jaxseg: MMSegmentation's model zoo as small pure JAX functions."""

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
_LAZY_NAMES = {"Predictor": "jaxseg.inference.predictor"}

__all__ = ["JaxsegError", "__version__", *_LAZY_NAMES, *_LAZY_MODULES]


def __getattr__(name: str) -> Any:
    """Import `jaxseg.Predictor` and the submodules (`jaxseg.losses`, ...) on first use."""
    if name in _LAZY_NAMES:
        return getattr(importlib.import_module(_LAZY_NAMES[name]), name)
    if name in _LAZY_MODULES:
        return importlib.import_module(f"jaxseg.{name}")
    raise AttributeError(f"module 'jaxseg' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
