"""The model zoo by name: `create_model`, `list_models`, and the tables of what there is.

model = create_model("pspnet_r50-d8", num_classes=19)
variables = init_variables(model, seed=0, image_shape=(1, 512, 1024, 3))
logits, out = model.apply(variables, images, train=False)
"""

import dataclasses
import functools
import inspect
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import linen as nn

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
from jaxseg.registry import lookup

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
RUNTIME_FIELDS = ("dtype", "axis_name", "frozen_statistics")
NORM_FIELDS = ("momentum", "epsilon")


def _plain(value: Any) -> Any:
    """ConfigDicts to dicts and lists to tuples, so that modules stay hashable."""
    if isinstance(value, (Mapping, ml_collections.ConfigDict)):
        return {k: _plain(v) for k, v in value.items()}
    return tuple(_plain(v) for v in value) if isinstance(value, (list, tuple)) else value


def _constructor(table: Mapping[str, type], what: str, arguments: Mapping[str, Any], **common: Any):
    """The table's module with its arguments bound, checked against its fields."""
    arguments = dict(arguments)
    module = lookup(table, arguments.pop("name", None), what)
    fields = {n: None for n in inspect.signature(module).parameters if n not in ("parent", "name")}
    for key in arguments:
        lookup(fields, key, f"argument of {module.__name__}")
    return functools.partial(module, **arguments, **common)


def _override(model: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Merge keyword arguments of create_model: model fields and nested dicts by name, others into the head or backbone that has them."""
    for key, value in overrides.items():
        if isinstance(model.get(key), dict) and isinstance(value, Mapping):
            other = value.get("name", model[key].get("name")) != model[key].get("name")
            model[key] = _plain(value) if other else _override(dict(model[key]), value)
        elif key in model or "heads" not in model:
            model[key] = _plain(value)
        else:
            owners = [(model["heads"]["decode"], HEADS), (model["backbone"], BACKBONES)]
            fields = [
                set(inspect.signature(lookup(table, part["name"], "part")).parameters)
                - {"parent", "name"}
                for part, table in owners
            ]
            owner = next((part for (part, _), names in zip(owners, fields) if key in names), None)
            if owner is None:
                lookup(
                    dict.fromkeys([*model, *RUNTIME_FIELDS, *fields[0], *fields[1]]),
                    key,
                    "argument of create_model",
                )
            owner[key] = _plain(value)
    return model


def create_model(
    config: ml_collections.ConfigDict | Mapping[str, Any] | str, **overrides: Any
) -> Segmentor:
    """The model of `config.model`, or of a short name (see list_models).

    Keyword arguments override the config: num_classes, align_corners, dropout_rate, dtype (compute; parameters stay float32),
    axis_name (batch norm and dropout across a mapped axis), frozen_statistics (paths of modules, 'a/b/c', whose running
    statistics training uses and leaves alone), any field of the decode head or the backbone (`mask_size=(97, 97)`), or
    nested dicts (`backbone=dict(base_channels=16)`).

    Raises:
        ConfigError: an unknown name or argument, a map that the backbone does not give, or no number of classes.
    """
    if isinstance(config, str):
        from jaxseg.config.builders import model_config

        config = model_config(config)
    if not hasattr(config, "keys"):
        raise ConfigError(
            f"create_model takes config.model or a short name (list_models() has them), not {config!r}."
        )
    runtime = {k: overrides.pop(k) for k in RUNTIME_FIELDS if k in overrides}
    model = _override(_plain(config), overrides)
    for name, fields in declared_fields(model).items():
        model["heads"][name] = model["heads"][name] | fields
    if not isinstance(model.get("num_classes"), int) or model["num_classes"] < 1:
        raise ConfigError(
            f"The model has no number of classes (num_classes is {model.get('num_classes')})", field="model.num_classes",
            hint="call jaxseg.config.resolve(config) first, which takes it from the data set, or pass num_classes=",
        )  # fmt: skip
    norm = dict(model.get("norm", {}))
    for key in norm:
        lookup(dict.fromkeys(NORM_FIELDS), key, "field of model.norm")
    layer = Layers(
        align_corners=model["align_corners"], dropout_rate=model["dropout_rate"], **norm, **runtime
    )
    # MMSegmentation runs a cascade's earlier stages twice a training step, for their loss and for the next stage, and so moves
    # their running statistics twice.
    twice = dataclasses.replace(layer, momentum=layer.momentum**2)
    heads = {
        name: _constructor(
            HEADS,
            "head",
            head,
            layer=twice if name.startswith("stage_") else layer,
            num_classes=model["num_classes"],
        )
        for name, head in model["heads"].items()
    }
    neck, backbone = (
        model.get("neck", {}),
        _constructor(BACKBONES, "backbone", model["backbone"], layer=layer),
    )
    neck = _constructor(NECKS, "neck", neck, layer=layer) if neck.get("name") else None
    return Segmentor(backbone=backbone, heads=heads, layer=layer, neck=neck)


def declared_fields(
    config: ml_collections.ConfigDict | Mapping[str, Any],
) -> dict[str, dict[str, Any]]:
    """What the heads of config.model leave open, () or 0, as the maps that they read have it: {head: {field: value}}.

    `feature_strides` are the backbone's, `channels` those of the maps together; a neck changes the maps' channels, not their
    number and sizes.

    Raises:
        ConfigError: a head reads a map that the backbone does not give.
    """
    model, layer = _plain(config), Layers()
    backbone = _constructor(BACKBONES, "backbone", model["backbone"], layer=layer)()
    channels, reductions, neck = backbone.channels, backbone.reductions, model.get("neck", {})
    if neck.get("name"):
        channels = (_constructor(NECKS, "neck", neck, layer=layer)().channels,) * len(channels)
    found = {}
    for name, head in model["heads"].items():
        defaults = {
            n: p.default
            for n, p in inspect.signature(
                lookup(HEADS, head.get("name"), "head")
            ).parameters.items()
        }
        fields = defaults | head
        _check_maps(name, fields, model["backbone"]["name"], len(channels))
        index = (fields["in_index"],) if isinstance(fields["in_index"], int) else fields["in_index"]
        found[name] = (
            {"feature_strides": tuple(reductions[i] for i in index)}
            if fields.get("feature_strides") == ()
            else {}
        )
        found[name] |= (
            {"channels": sum(channels[i] for i in index)} if fields["channels"] == 0 else {}
        )
    return found


def _check_maps(head: str, fields: Mapping[str, Any], backbone: str, maps: int) -> None:
    """ConfigError if a head reads a feature map that the backbone (and a neck, which keeps their number) does not give."""
    for field in ("in_index", "low_level_index"):
        index = fields.get(field)
        for i in (index,) if isinstance(index, int) else index or ():
            if not -maps <= i < maps:
                raise ConfigError(
                    f"model.heads.{head}.{field} is {index}, but the backbone '{backbone}' gives {maps} maps",
                    field=f"model.heads.{head}.{field}", hint="choose among them",
                )  # fmt: skip


def list_models(contains: str = "") -> list[str]:
    """Short names that create_model accepts, those of the published experiments: method, backbone, recipe."""
    from jaxseg.config.builders import published_models

    return [name for name in published_models() if contains in name]


def variable_shapes(
    model: nn.Module, image_shape: tuple[int, int, int, int] = (1, 64, 64, 3)
) -> dict[str, Any]:
    """Shapes and dtypes of a model's variables (jax.ShapeDtypeStruct) for images of this shape; nothing is computed."""
    keys = {"params": jax.random.key(0), "points": jax.random.key(0)}
    return jax.eval_shape(
        lambda: model.init(keys, jnp.zeros(image_shape, jnp.float32), train=False)
    )


def init_variables(
    model: nn.Module, seed: int, image_shape: tuple[int, int, int, int] = (1, 64, 64, 3)
) -> dict[str, Any]:
    """Fresh variables as numpy float32 arrays: the model's own initializers, drawn by NumPy in a fraction of the time that
    compiling `model.init` takes. A parameter depends on (seed, its path), not on what else the model has."""
    sources: dict[str, Initializer] = {}

    def trace(key):
        with recording() as drawn:
            variables = model.init(
                {"params": key, "points": key}, jnp.zeros(image_shape, jnp.float32), train=False
            )
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
            sources[jax.tree_util.keystr(path)] = drawn[id(leaf)][1]
        return variables

    def draw(path, leaf):
        name = jax.tree_util.keystr(path)
        rng = np.random.Generator(np.random.Philox(key=[zlib.crc32(name.encode()), seed]))
        return sources[name].sample(rng, leaf.shape)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(trace, jax.random.key(0)))
