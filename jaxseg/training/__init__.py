"""Training: the state, the step, the loop around it, and its progress.

`train` also needs orbax and the data pipeline, so it is imported on first use.
"""

import importlib
from typing import Any

__all__ = ["train"]


def __getattr__(name: str) -> Any:
    """Import `train` on first use."""
    if name == "train":
        return importlib.import_module("jaxseg.training.loop").train
    raise AttributeError(f"module 'jaxseg.training' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), "train"])
