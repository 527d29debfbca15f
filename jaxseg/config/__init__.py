"""Experiments as data: the ConfigDicts of configs/ and the frozen `Experiment`."""

from jaxseg.config.builders import (
    aspp,
    cross_entropy,
    experiment,
    fcn_auxiliary,
    joined_fcn,
    merge,
    ohem_if_multi_grid,
)
from jaxseg.config.finder import build, get_experiment, load_builder, model_config, published_models
from jaxseg.config.resolve import override_trained, resolve
from jaxseg.config.schema import (
    ConcatConfig,
    DatasetConfig,
    EvalConfig,
    Experiment,
    LossConfig,
    ModelConfig,
    ModuleConfig,
    MultiplierConfig,
    NormConfig,
    OptimizerConfig,
    ScheduleConfig,
)
from jaxseg.config.variant import Variant, grammar, parse_variant
from jaxseg.errors import ConfigError

__all__ = [
    "ConcatConfig",
    "ConfigError",
    "DatasetConfig",
    "EvalConfig",
    "Experiment",
    "LossConfig",
    "ModelConfig",
    "ModuleConfig",
    "MultiplierConfig",
    "NormConfig",
    "OptimizerConfig",
    "ScheduleConfig",
    "Variant",
    "aspp",
    "build",
    "cross_entropy",
    "experiment",
    "fcn_auxiliary",
    "get_experiment",
    "grammar",
    "joined_fcn",
    "load_builder",
    "merge",
    "model_config",
    "ohem_if_multi_grid",
    "override_trained",
    "parse_variant",
    "published_models",
    "resolve",
]
