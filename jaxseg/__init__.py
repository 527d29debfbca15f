"""jaxseg: MMSegmentation's model zoo as small pure JAX functions."""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`jaxseg.Predictor`, imported on first use: it needs more libraries than the models do."""
    if name == "Predictor":
        from jaxseg.inference import Predictor

        return Predictor
    raise AttributeError(f"module 'jaxseg' has no attribute '{name}'")
