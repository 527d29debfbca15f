"""Experiments as data: ConfigDicts from the files of configs/, resolved and checked."""

import importlib
from typing import Any

_BUILDERS = (
    "aspp", "build", "cross_entropy", "experiment", "fcn_auxiliary", "get_experiment", "grammar", "joined_fcn",
    "load_builder", "merge", "model_config", "ohem_if_multi_grid", "parse_variant", "published_models",
)  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _BUILDERS:
        return getattr(importlib.import_module("jaxseg.config.builders"), name)
    raise AttributeError(f"module 'jaxseg.config' has no attribute '{name}'")
