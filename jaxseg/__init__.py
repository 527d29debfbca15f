"""jaxseg: MMSegmentation's model zoo as small pure JAX functions.

`jaxseg.models`, `losses`, `metrics`, `optim` and `precision` need JAX, Flax and optax only. Reading
images, training, evaluation and prediction need the extra: pip install 'jaxseg[train]'.
"""

from typing import Any

from jaxseg.errors import JaxsegError as JaxsegError
from jaxseg.lazy import import_name

__version__ = "0.1.0"

# Imported on first use: some need more libraries than the models do.
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
    **{name: f"jaxseg.{name}" for name in _LAZY_MODULES},
}

__all__ = ["JaxsegError", "__version__", *_LAZY_NAMES]


def __getattr__(name: str) -> Any:
    """Import a public name or a submodule (`jaxseg.losses`, ...) on first use."""
    return import_name("jaxseg", _LAZY_NAMES, name)


def __dir__() -> list[str]:
    return sorted(__all__)
