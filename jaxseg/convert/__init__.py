"""Conversion between MMSegmentation's checkpoints and ours: state dicts, files, whole workdirs.

State dicts and weight files need JAX and Flax only. `convert_checkpoint` and `export_checkpoint`
also read data sets and workdirs, so they are imported on first use.
"""

from typing import Any

from jaxseg.errors import WeightsError
from jaxseg.lazy import import_name
from jaxseg.weights.merge import MergeReport
from jaxseg.weights.mmseg import (
    current_names,
    from_mmseg,
    load_backbone,
    load_model,
    strip_prefix,
    to_mmseg,
    to_variables,
    torch_name,
)
from jaxseg.weights.state_dict import read_classes, read_state_dict, write_state_dict

_LAZY_NAMES = dict.fromkeys(
    ("convert_checkpoint", "export_checkpoint"), "jaxseg.convert.checkpoints"
)

__all__ = [
    "MergeReport",
    "Report",
    "StateDictError",
    "convert_checkpoint",
    "current_names",
    "export_checkpoint",
    "from_mmseg",
    "load_backbone",
    "load_model",
    "read_classes",
    "read_state_dict",
    "strip_prefix",
    "to_mmseg",
    "to_variables",
    "torch_name",
    "write_state_dict",
]

# Names in the first edition.
Report = MergeReport
StateDictError = WeightsError


def __getattr__(name: str) -> Any:
    """Import a function on whole workdirs on first use."""
    return import_name("jaxseg.convert", _LAZY_NAMES, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY_NAMES])
