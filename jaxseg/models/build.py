"""Models from configs and names: tables of modules, `create_model` and initial variables."""

import dataclasses
import functools
import inspect
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxseg.config.finder import model_config, published_models
from jaxseg.config.schema import ModelConfig, thaw, to_dict
from jaxseg.errors import ConfigError
from jaxseg.models.backbones.cgnet import CGNet
from jaxseg.models.backbones.fast_scnn import FastSCNN
from jaxseg.models.backbones.hrnet import HRNet
from jaxseg.models.backbones.mobilenet_v2 import MobileNetV2
from jaxseg.models.backbones.mobilenet_v3 import MobileNetV3
from jaxseg.models.backbones.resnest import ResNeSt
from jaxseg.models.backbones.resnet import ResNet
from jaxseg.models.heads.ann import ANNHead
from jaxseg.models.heads.apc import APCHead
from jaxseg.models.heads.aspp import ASPPHead
from jaxseg.models.heads.cc import CCHead
from jaxseg.models.heads.da import DAHead
from jaxseg.models.heads.dm import DMHead
from jaxseg.models.heads.dnl import DNLHead
from jaxseg.models.heads.ema import EMAHead
from jaxseg.models.heads.enc import EncHead
from jaxseg.models.heads.fcn import FCNHead
from jaxseg.models.heads.fpn import FPNHead
from jaxseg.models.heads.gc import GCHead
from jaxseg.models.heads.lraspp import LRASPPHead
from jaxseg.models.heads.non_local import NonLocalHead
from jaxseg.models.heads.ocr import OCRHead
from jaxseg.models.heads.point import PointHead
from jaxseg.models.heads.psa import PSAHead
from jaxseg.models.heads.psp import PSPHead
from jaxseg.models.heads.uper import UPerHead
from jaxseg.models.initializers import Initializer, recording
from jaxseg.models.layers import Layers
from jaxseg.models.necks.fpn import FPN
from jaxseg.models.segmentor import Segmentor
from jaxseg.registry import check_name, lookup, unknown_name

BACKBONES = {
    "resnet": ResNet,
    "resnest": ResNeSt,
    "hrnet": HRNet,
    "mobilenet_v2": MobileNetV2,
    "mobilenet_v3": MobileNetV3,
    "fast_scnn": FastSCNN,
    "cgnet": CGNet,
}
NECKS = {"fpn": FPN}
HEADS = {
    "fcn": FCNHead,
    "psp": PSPHead,
    "aspp": ASPPHead,
    "uper": UPerHead,
    "ocr": OCRHead,
    "fpn": FPNHead,
    "point": PointHead,
    "lraspp": LRASPPHead,
    "ann": ANNHead,
    "apc": APCHead,
    "cc": CCHead,
    "da": DAHead,
    "dm": DMHead,
    "dnl": DNLHead,
    "ema": EMAHead,
    "enc": EncHead,
    "gc": GCHead,
    "non_local": NonLocalHead,
    "psa": PSAHead,
}
Module = Callable[..., nn.Module]

RUNTIME_FIELDS = ("dtype", "axis_name", "frozen_statistics")
NORM_FIELDS = ("momentum", "epsilon")


def create_model(config: ModelConfig | Mapping[str, Any] | str, **overrides: Any) -> Segmentor:
    """Create the model of a config or a name.

    Instead of the name of a backbone, neck or head, a config may hold a class (or a
    `functools.partial` of one) with the same call signature:
    `heads=dict(decode=dict(name=MyHead, channels=64))`.

    Args:
        config: `experiment.model`, the `model` part of a config, or a short name such as
            'pspnet_r50-d8' (`list_models` returns the published ones).
        **overrides: Replace fields of the config: `num_classes`, `align_corners`, `dropout_rate`,
            `norm`; any field of the decode head or else of the backbone (`mask_size=(97, 97)`); or
            nested dicts (`backbone=dict(base_channels=16)`). Three more set how the model runs:
            `dtype` of the computation (parameters stay float32); `axis_name`, the mapped axis that
            batch norm and dropout span; `frozen_statistics`, paths 'a/b/c' of the norms that keep
            their running statistics in training.

    Returns:
        The model; it maps normalised images [B, H, W, C] to (logits [B, H, W, K] float32, out).

    Raises:
        ConfigError: A name or argument is unknown, a head reads a feature map that the backbone
            does not provide, or the number of classes is missing.
    """
    if isinstance(config, str):
        config = model_config(config)
    model = to_dict(config) if isinstance(config, ModelConfig) else config
    if not hasattr(model, "items"):
        raise ConfigError(
            f"create_model takes a model config or a short name, not {config!r}",
            hint="list_models() returns the short names",
        )
    runtime = {key: overrides.pop(key) for key in RUNTIME_FIELDS if key in overrides}
    model = _override(thaw(model), overrides)
    for name, fields in declared_fields(model).items():
        model["heads"][name] = model["heads"][name] | fields
    classes = model.get("num_classes")
    if not isinstance(classes, int) or classes < 1:
        raise ConfigError(
            f"The model has no number of classes (num_classes is {classes})",
            field="model.num_classes",
            hint="jaxseg.load_experiment(config) takes it from the data set; or pass num_classes",
        )
    norm = model.get("norm", {})
    for key in norm:
        check_name(NORM_FIELDS, key, "field of model.norm")
    layer = Layers(
        align_corners=model["align_corners"], dropout_rate=model["dropout_rate"], **norm, **runtime
    )
    # In each training step MMSegmentation runs a cascade's earlier stages twice, for their loss and
    # for the next stage, and so updates their running statistics twice.
    stage_layer = dataclasses.replace(layer, momentum=layer.momentum**2)
    heads = {}
    for name, head in model["heads"].items():
        own_layer = stage_layer if name.startswith("stage_") else layer
        heads[name] = _constructor(HEADS, "head", head, layer=own_layer, num_classes=classes)
    neck = None
    if model.get("neck", {}).get("name"):
        neck = _constructor(NECKS, "neck", model["neck"], layer=layer)
    backbone = _constructor(BACKBONES, "backbone", model["backbone"], layer=layer)
    return Segmentor(backbone=backbone, heads=heads, layer=layer, neck=neck)


def list_models(contains: str = "") -> list[str]:
    """List the short names of the published models, '<method>_<backbone>'.

    Args:
        contains: Return only names that contain this text.

    Returns:
        The names, sorted.
    """
    return [name for name in published_models() if contains in name]


# --- Configs --------------------------------------------------------------------------------------


def find_module(table: Mapping[str, type[nn.Module]], name: Any, kind: str) -> Module:
    """Look up a class by name in BACKBONES, NECKS or HEADS; a callable is returned as it is.

    Raises:
        ConfigError: The table has no such name.
    """
    return name if callable(name) else lookup(table, name, kind)


def _parameters(module: Module) -> dict[str, inspect.Parameter]:
    """The arguments of a module's constructor that describe it."""
    parameters = inspect.signature(module).parameters
    return {name: p for name, p in parameters.items() if name not in ("parent", "name")}


def _name_of(module: Any) -> str:
    """The name of a module for messages: its name in the tables, or its class's."""
    if not callable(module):
        return str(module)
    return getattr(module, "__name__", "") or _name_of(getattr(module, "func", str(module)))


def _constructor(
    table: Mapping[str, type[nn.Module]], kind: str, part: Mapping[str, Any], **common: Any
) -> Module:
    """The module that a part of the config names, its arguments bound and checked."""
    arguments = dict(part)
    module = find_module(table, arguments.pop("name", None), kind)
    known = _parameters(module)
    for key in arguments:
        check_name(known, key, f"argument of {_name_of(module)}")
    return functools.partial(module, **arguments, **common)


def _override(model: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Merge the keyword arguments of create_model into its config.

    Keys that are no fields of the config are arguments of the decode head, else of the backbone.
    """
    for key, value in overrides.items():
        inner = model.get(key)
        if isinstance(inner, dict) and hasattr(value, "items"):
            same = value.get("name", inner.get("name")) == inner.get("name")
            model[key] = _override(dict(inner), value) if same else thaw(value)
        elif key in model or "heads" not in model:
            model[key] = thaw(value)
        else:
            _owner(model, key)[key] = thaw(value)
    return model


def _owner(model: dict[str, Any], key: str) -> dict[str, Any]:
    """The part of the config, decode head or backbone, whose module has the argument `key`."""
    known = [*model, *RUNTIME_FIELDS]
    parts = ((HEADS, "head", model["heads"]["decode"]), (BACKBONES, "backbone", model["backbone"]))
    for table, kind, part in parts:
        fields = _parameters(find_module(table, part["name"], kind))
        if key in fields:
            return part
        known += fields
    raise unknown_name(dict.fromkeys(known), key, "argument of create_model")


def declared_fields(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return values for the fields that heads leave open, from the feature maps that they read.

    `feature_strides` () becomes the backbone's strides, and `channels` 0 the channels of all maps
    together. A neck changes the channels of the maps, but not their number or sizes.

    Args:
        config: A model config as nested mappings.

    Returns:
        {head: {field: value}} of the fields left open.

    Raises:
        ConfigError: A head reads a feature map that the backbone does not provide.
    """
    model = thaw(config)
    layer = Layers()
    backbone = _constructor(BACKBONES, "backbone", model["backbone"], layer=layer)()
    channels = backbone.channels
    if model.get("neck", {}).get("name"):
        neck = _constructor(NECKS, "neck", model["neck"], layer=layer)()
        channels = (neck.channels,) * len(channels)
    found: dict[str, dict[str, Any]] = {}
    for name, head in model["heads"].items():
        parameters = _parameters(find_module(HEADS, head.get("name"), "head"))
        fields = {key: p.default for key, p in parameters.items()} | head
        _check_maps(name, fields, _name_of(model["backbone"]["name"]), len(channels))
        maps = fields.get("in_index", ())
        maps = (maps,) if isinstance(maps, int) else maps
        found[name] = {}
        if fields.get("feature_strides") == ():
            found[name]["feature_strides"] = tuple(backbone.reductions[i] for i in maps)
        if fields.get("channels") == 0:
            found[name]["channels"] = sum(channels[i] for i in maps)
    return found


def _check_maps(head: str, fields: Mapping[str, Any], backbone: str, count: int) -> None:
    """Raise if a head reads a feature map that is not among the backbone's `count`."""
    for field in ("in_index", "low_level_index"):
        index = fields.get(field)
        if index is None:
            continue
        for i in (index,) if isinstance(index, int) else index:
            if not -count <= i < count:
                raise ConfigError(
                    f"model.heads.{head}.{field} is {index}, but the backbone '{backbone}' has "
                    f"{count} maps",
                    field=f"model.heads.{head}.{field}",
                    hint=f"choose from {-count} to {count - 1}",
                )


# --- Variables ------------------------------------------------------------------------------------


def variable_shapes(
    model: nn.Module, image_shape: tuple[int, int, int, int] = (1, 64, 64, 3)
) -> dict[str, Any]:
    """Return the shapes and dtypes of a model's variables without computing them.

    Args:
        model: The model, or any module with its call signature.
        image_shape: (B, H, W, C) of the images that the model is initialised with.

    Returns:
        The variables, with `jax.ShapeDtypeStruct` leaves.
    """
    return jax.eval_shape(functools.partial(_init, model, image_shape), jax.random.key(0))


def _init(model: nn.Module, image_shape: tuple[int, ...], key: jax.Array) -> dict[str, Any]:
    images = jnp.zeros(image_shape, jnp.float32)
    return dict(model.init({"params": key, "points": key}, images, train=False))


def init_variables(
    model: nn.Module, seed: int, image_shape: tuple[int, int, int, int] = (1, 64, 64, 3)
) -> dict[str, Any]:
    """Draw initial variables, in a fraction of the time that compiling `model.init` takes.

    NumPy draws the variables that have an `Initializer` of `jaxseg.models.initializers`. Flax draws
    all others, for instance of `nn.LayerNorm`, `nn.Dense` with Flax's initializers, or modules
    under `nn.remat`, in one program that computes nothing else.

    Args:
        model: The model, or any module with its call signature.
        seed: Seed of the random numbers. A variable depends only on the seed and its own path.
        image_shape: (B, H, W, C) of the images that the model is initialised with.

    Returns:
        The variables as NumPy arrays; parameters are float32.
    """
    initializers: dict[str, Initializer] = {}

    def trace(key: jax.Array) -> dict[str, Any]:
        with recording() as drawn:
            variables = _init(model, image_shape, key)
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
            if id(leaf) in drawn:
                initializers[jax.tree_util.keystr(path)] = drawn[id(leaf)][1]
        return variables

    shapes = jax.eval_shape(trace, jax.random.key(0))
    others = _draw_with_flax(model, seed, image_shape, initializers)

    def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        name = jax.tree_util.keystr(path)
        if name in others:
            return others[name]
        rng = np.random.Generator(np.random.Philox(key=[zlib.crc32(name.encode()), seed]))
        return initializers[name].sample(rng, leaf.shape)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def _draw_with_flax(
    model: nn.Module,
    seed: int,
    image_shape: tuple[int, ...],
    initializers: Mapping[str, Initializer],
) -> dict[str, np.ndarray]:
    """The variables that are not in `initializers`, by path."""

    def others(key: jax.Array) -> dict[str, jax.Array]:
        leaves = jax.tree_util.tree_leaves_with_path(_init(model, image_shape, key))
        named = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
        return {name: leaf for name, leaf in named.items() if name not in initializers}

    key = jax.random.key(seed)
    if not jax.eval_shape(others, key):
        return {}
    return {name: np.asarray(leaf) for name, leaf in jax.jit(others)(key).items()}
