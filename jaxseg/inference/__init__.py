"""Inference: class scores of whole images or sliding windows, and `Predictor` for trained models.

`settings`, `whole`, `slide` and `programs` need JAX only; `predictor` and `files` also read images
and checkpoints, so they are imported on first use.
"""

from typing import Any

from jaxseg.lazy import import_name

_LAZY_NAMES = {
    "Predictor": "jaxseg.inference.predictor",
    "load_model": "jaxseg.inference.predictor",
    "predict_checkpoint": "jaxseg.inference.files",
    "predict_files": "jaxseg.inference.files",
}

__all__ = ["Predictor", "load_model", "predict_checkpoint", "predict_files"]


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    return import_name("jaxseg.inference", _LAZY_NAMES, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY_NAMES])
