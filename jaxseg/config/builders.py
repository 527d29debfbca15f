"""Builders of configs: a config file states what is specific to a method, the variant the rest.

Hyper-parameters are those of MMSegmentation.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict

from jaxseg.config.checks import tidy
from jaxseg.config.defaults import BACKBONES, CROSS_ENTROPY, DATASETS, FP16, IMAGENET, RSB_ADAMW
from jaxseg.config.schema import DATASET, DEFAULTS, EVALUATION, LOSS
from jaxseg.config.variant import Variant, parse_variant
from jaxseg.errors import ConfigError


def fcn_auxiliary(**changes: Any) -> dict[str, Any]:
    """Return the standard auxiliary head: one convolution on the backbone's third map."""
    return dict(name="fcn", in_index=2, num_convs=1, concat_input=False) | changes


def joined_fcn() -> dict[str, Any]:
    """Return HRNet's decode head: a 1x1 convolution, as wide as its four concatenated maps."""
    return dict(
        name="fcn",
        in_index=(0, 1, 2, 3),
        channels=0,
        num_convs=1,
        kernel_size=1,
        concat_input=False,
    )


def cross_entropy(weight: float = 1.0, **changes: Any) -> dict[str, Any]:
    """Return a cross-entropy entry of config.losses with all its fields."""
    return merge(dict(name="cross_entropy", **LOSS | dict(weight=weight), **CROSS_ENTROPY), changes)


def aspp(variant: Variant, **changes: Any) -> dict[str, Any]:
    """Return DeepLab's decode head: dilations 12, 24, 36 at output stride 8, else half as large."""
    rate = 12 if variant.output_stride == 8 else 6
    return dict(name="aspp", dilations=(1, rate, 2 * rate, 3 * rate)) | changes


def ohem_if_multi_grid(variant: Variant) -> dict[str, Any]:
    """Return losses with hard example mining for multi-grid backbones, as published for DeepLab."""
    if not variant.backbone.endswith("mg124"):
        return {}
    return dict(decode=dict(sampler=dict(name="ohem")))


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a deep copy of `base` with `changes` merged into its nested dicts."""
    merged = {
        key: merge(value, {}) if isinstance(value, Mapping) else value
        for key, value in base.items()
    }
    for key, value in changes.items():
        inner = merged.get(key)
        inner = inner if isinstance(inner, Mapping) else {}
        merged[key] = merge(inner, value) if isinstance(value, Mapping) else value
    return merged


def _optimization(variant: Variant, table: Mapping[str, Any]) -> dict[str, Any]:
    """Return the optimiser and schedule of the data set and recipe."""
    config = {
        "optimizer": DEFAULTS["optimizer"] | table.get("optimizer", {}),
        "schedule": DEFAULTS["schedule"] | table.get("schedule", {}),
    }
    if variant.recipe == "rsb_adamw":
        config["optimizer"] |= RSB_ADAMW["optimizer"]
        boundaries = (variant.steps * 3 // 4, variant.steps * 9 // 10)
        config["schedule"] |= RSB_ADAMW["schedule"] | {"boundaries": boundaries}
    return config


def _data(variant: Variant, table: Mapping[str, Any]) -> dict[str, Any]:
    """Return `dataset` and `eval`.

    With an odd crop size (769), images are scaled to one pixel more and evaluated in sliding
    windows; some data sets are always evaluated in windows.
    """
    odd = variant.crop_size[0] % 2
    resize = tuple(n + odd if n else 0 for n in table["resize"])
    dataset = {"name": variant.trained_on, "crop_size": variant.crop_size, "resize": resize}
    if variant.trained_on != "folder":
        dataset |= {"dtype": "uint8", **IMAGENET}
    evaluation = {
        "dataset": "" if variant.trained_on == variant.dataset else variant.dataset,
        "resize": table.get("eval_resize", resize),
        "mode": "slide" if odd or table.get("slide") else "whole",
        "crop_size": variant.crop_size,
        "stride": tuple(n * 2 // 3 + n % 2 for n in variant.crop_size),
    }
    return {"dataset": DATASET | dataset, "eval": EVALUATION | evaluation}


def _backbone(method: str, variant: Variant, own: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the backbone's fields and `pretrained`, its ImageNet weights."""
    backbone = dict(own or BACKBONES[variant.backbone])
    if variant.recipe == "rsb_adamw":
        if backbone["name"] != "resnet":
            raise ConfigError(
                f"'rsb_adamw' in '{variant.text}' is a recipe for ResNets (7x7 stem), not for "
                f"{variant.backbone or method}.",
                field="variant",
            )
        weights = RSB_ADAMW["pretrained"] if backbone["depth"] == 50 else ""
        backbone |= {"stem": "v1", "pretrained": weights}
    return backbone


def experiment(
    method: str,
    variant: str | Variant,
    *,
    decode: Mapping[str, Any],
    backbone: Mapping[str, Any] | None = None,
    neck: Mapping[str, Any] | None = None,
    losses: Mapping[str, Any] | None = None,
    changes: Mapping[str, Any] | None = None,
    batch_size: int = 0,
    **heads: Mapping[str, Any],
) -> ConfigDict:
    """Build the config of one experiment (its fields: docs/config.md).

    Args:
        method: Name of the config file.
        variant: The variant, parsed or not.
        decode: The decode head: {'name': ..., arguments}. `channels` defaults to 512 (auxiliary
            heads: 256), or a quarter of it on ResNets shallower than 50 layers.
        backbone: The backbone of a method that has its own.
        neck: The neck, if the model has one.
        losses: Changes to the default losses: one cross entropy per head with weight 1 (auxiliary
            heads: 0.4).
        changes: Changes to the result, merged last.
        batch_size: The method's default global batch size; 0 for the data set's.
        **heads: Further heads: aux_0, aux_1, ..., stage_0, ...

    Returns:
        The config.

    Raises:
        ConfigError: The variant cannot be read, or does not fit the method.
    """
    if not isinstance(variant, Variant):
        variant = parse_variant(method, variant, {} if backbone else None)
    body = _backbone(method, variant, backbone)
    pretrained = body.pop("pretrained", "")
    all_heads = {"decode": dict(decode)} | {name: dict(head) for name, head in heads.items()}
    for name, head in all_heads.items():
        head.setdefault("channels", variant.width(256 if name.startswith("aux") else 512))
    terms = {n: cross_entropy(0.4 if n.startswith("aux") else 1.0) for n in all_heads}
    table = DATASETS[variant.dataset]
    default_batch = batch_size or table.get("batch_size", 16)
    fields = {
        "name": f"{method}_{variant.text}",
        "steps": variant.steps,
        "batch_size": variant.batch_size or default_batch,
        "eval_every": variant.steps // 10,
        "checkpoint_every": variant.steps // 10,
        "pretrained": "" if variant.recipe == "scratch" else pretrained,
        "model": {
            "backbone": body,
            "neck": dict(neck or {"name": ""}),
            "heads": all_heads,
            "num_classes": config_dict.placeholder(int),
            "align_corners": bool(variant.crop_size[0] % 2),
        },
        "losses": merge(terms, losses or {}),
        **(FP16 if variant.recipe == "fp16" else {}),
        **_optimization(variant, table),
        **_data(variant, table),
    }
    config = ConfigDict(merge(merge(DEFAULTS, fields), changes or {}))
    tidy(config)
    # The learning rate scales with a batch size that the variant names.
    factor = (variant.batch_size or default_batch) / default_batch
    config.optimizer.learning_rate *= factor
    config.schedule.end_value *= factor
    if classes := DATASETS[config.dataset.name].get("num_classes"):
        config.model.num_classes = classes
    return config
