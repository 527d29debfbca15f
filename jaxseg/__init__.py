"""jaxseg: MMSegmentation's model zoo as small pure JAX functions."""

import importlib
from typing import Any

from jaxseg.errors import JaxsegError as JaxsegError

__version__ = "0.1.0"


ROOMS = ("config", "convert", "data", "evaluate", "inference", "losses", "metrics", "models", "optim", "precision", "train", "visualize", "zoo")


def __getattr__(name: str) -> Any:
    """`jaxseg.Predictor` and the rooms (`jaxseg.losses`, ...), imported on first use: some need more libraries than the models do."""
    if name == "Predictor":
        return importlib.import_module("jaxseg.inference").Predictor
    if name in ROOMS:
        return importlib.import_module(f"jaxseg.{name}")
    raise AttributeError(f"module 'jaxseg' has no attribute '{name}'")
