"""Training: the state, the step, the loop around it, and its progress.

`train` also needs orbax and the data pipeline, so it is imported on first use.
"""

from typing import Any

from jaxseg.lazy import import_name

_LAZY_NAMES = {"train": "jaxseg.training.loop"}

__all__ = ["train"]


def __getattr__(name: str) -> Any:
    """Import `train` on first use."""
    return import_name("jaxseg.training", _LAZY_NAMES, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY_NAMES])
