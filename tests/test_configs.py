"""Every published experiment's config against its record in data/zoo.json.gz; and what may be
composed beyond them.
"""

import functools
import gzip
import json
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jaxseg.config import ConfigError, get_experiment, parse_variant
from jaxseg.models import BACKBONES, HEADS, create_model, declared_fields

RECORDS = json.loads(gzip.decompress((Path(__file__).parent / "data" / "zoo.json.gz").read_bytes()))
METHODS = sorted({record["config_file"] for record in RECORDS})
DATASETS = {
    "CityscapesDataset": "cityscapes",
    "ADE20KDataset": "ade20k",
    "PascalContextDataset": "pascal_context",
    "PascalContextDataset59": "pascal_context_59",
    "LoveDADataset": "loveda",
    "PotsdamDataset": "potsdam",
    "ISPRSDataset": "vaihingen",
    "iSAIDDataset": "isaid",
    "MapillaryDataset_v1": "mapillary_v1_65",
    "DarkZurichDataset": "dark_zurich",
    "NightDrivingDataset": "night_driving",
}

# Their head: ours, {their field: (ours, their default)}. Where ours has no such field, the value
# that it stands for.
_FCN = {
    "num_convs": ("num_convs", 2),
    "kernel_size": ("kernel_size", 3),
    "concat_input": ("concat_input", True),
    "dilation": ("dilation", 1),
}
_POOL = {"pool_scales": ("pool_scales", None)}
_ASPP = {"dilations": ("dilations", None)}
_ATTENTION = {
    "reduction": ("reduction", None),
    "use_scale": (True, None),
    "mode": ("embedded_gaussian", None),
}
HEAD_FIELDS = {
    "FCNHead": ("fcn", _FCN),
    "DepthwiseSeparableFCNHead": ("fcn", _FCN),
    "PSPHead": ("psp", _POOL),
    "ASPPHead": ("aspp", _ASPP),
    "DepthwiseSeparableASPPHead": ("aspp", _ASPP | {"c1_channels": ("low_level_channels", None)}),
    "UPerHead": ("uper", _POOL),
    "OCRHead": ("ocr", {"ocr_channels": ("ocr_channels", None)}),
    "FPNHead": ("fpn", {"feature_strides": ("feature_strides", None)}),
    "PointHead": ("point", {"num_fcs": ("num_fcs", None), "coarse_pred_each_layer": (True, None)}),
    "LRASPPHead": ("lraspp", {"branch_channels": ("branch_channels", [32, 64])}),
    "NLHead": ("non_local", _ATTENTION),
    "DNLHead": ("dnl", _ATTENTION | {"temperature": ("temperature", 0.05)}),
    "EncHead": (
        "enc",
        {
            "num_codes": ("num_codes", None),
            "add_lateral": (False, None),
            "use_se_loss": (True, None),
        },
    ),
    "CCHead": ("cc", {"recurrence": ("recurrence", None)}),
    "DAHead": ("da", {"pam_channels": ("pam_channels", None)}),
    "APCHead": ("apc", _POOL),
    "GCHead": (
        "gc",
        {
            "ratio": ("ratio", None),
            "pooling_type": ("att", None),
            "fusion_types": (["channel_add"], None),
        },
    ),
    "DMHead": ("dm", {"filter_sizes": ("filter_sizes", None)}),
    "ANNHead": (
        "ann",
        {k: (k, None) for k in ("project_channels", "key_pool_scales")}
        | {"query_scales": ([1], None)},
    ),
    "EMAHead": (
        "ema",
        {k: (k, None) for k in ("ema_channels", "num_bases", "num_stages", "momentum")},
    ),
    "PSAHead": (
        "psa",
        {
            "mask_size": ("mask_size", None),
            "shrink_factor": ("shrink", None),
            "psa_type": ("bi-direction", None),
            "compact": (False, None),
        }
        | {"normalization_factor": (1.0, None), "psa_softmax": (True, None)},
    ),
}
ELSEWHERE = {
    "type",
    "in_channels",
    "in_index",
    "channels",
    "num_classes",
    "norm_cfg",
    "align_corners",
    "dropout_ratio",
    "loss_decode",
}
ELSEWHERE |= {"c1_in_channels", "sampler", "input_transform", "act_cfg", "loss_se_decode"}


def _plain(value):
    """As JSON has it: lists for tuples, and whole floats as they are."""
    return [_plain(v) for v in value] if isinstance(value, (tuple, list)) else value


def _fields(table, part):
    """A part of config.model with its module's defaults filled in."""
    module = table[part["name"]]
    defaults = {f.name: f.default for f in module.__dataclass_fields__.values()}
    return {k: _plain(v) for k, v in (defaults | dict(part)).items()}


class Comparison:
    """Collects what differs between a record and a config."""

    def __init__(self):
        self.differences = []

    def same(self, what, ours, theirs):
        ours, theirs = _plain(ours), _plain(theirs)
        numbers = isinstance(ours, float) and isinstance(theirs, (int, float))
        if not (math.isclose(ours, theirs, rel_tol=1e-6) if numbers else ours == theirs):
            self.differences.append(f"{what} is {ours}, published {theirs}")


def _backbone(compare, ours, record):
    theirs = record["model"]["backbone"]
    kind, ours = theirs["type"], _fields(BACKBONES, ours)
    names = {
        "ResNet": "resnet",
        "ResNetV1c": "resnet",
        "ResNeSt": "resnest",
        "HRNet": "hrnet",
        "FastSCNN": "fast_scnn",
        "CGNet": "cgnet",
    }
    names |= {"MobileNetV2": "mobilenet_v2", "MobileNetV3": "mobilenet_v3"}
    expected = {"name": names[kind]}
    if kind in ("ResNet", "ResNetV1c", "ResNeSt"):
        stem = {"ResNet": "v1", "ResNetV1c": "v1c", "ResNeSt": "v1d"}[kind]
        expected |= {
            "depth": theirs["depth"],
            "stem": stem,
            "stem_channels": theirs.get("stem_channels", 64),
            "base_channels": 64,
        }
        expected |= {k: theirs[k] for k in ("strides", "dilations", "contract_dilation")} | {
            "multi_grid": theirs.get("multi_grid", [])
        }
    if kind == "ResNeSt":
        expected |= {
            "radix": theirs["radix"],
            "reduction": theirs["reduction_factor"],
            "avg_down_stride": theirs["avg_down_stride"],
        }
    if kind == "HRNet":
        stages = [theirs["extra"][f"stage{i}"] for i in (2, 3, 4)]
        expected |= {
            "base_channels": stages[0]["num_channels"][0],
            "modules": [s["num_modules"] for s in stages],
        }
        expected |= {"blocks": stages[0]["num_blocks"][0], "stem_channels": 64}
    if kind == "MobileNetV2":
        expected |= {k: theirs[k] for k in ("widen_factor", "strides", "dilations", "out_indices")}
    if kind == "MobileNetV3":
        expected |= {"arch": theirs["arch"], "widen_factor": 1.0}
    if kind == "CGNet":
        renamed = {
            "widths": "num_channels",
            "blocks": "num_blocks",
            "dilations": "dilations",
            "reduction_factors": "reductions",
        }
        expected |= {k: theirs[v] for k, v in renamed.items()}
    if kind == "FastSCNN":
        renamed = {
            "downsample_channels": "downsample_dw_channels",
            "higher_channels": "global_in_channels",
            "lower_channels": "global_out_channels",
        }
        renamed |= {
            "block_channels": "global_block_channels",
            "block_strides": "global_block_strides",
            "fusion_channels": "fusion_out_channels",
        }
        expected |= {k: theirs[v] for k, v in renamed.items()}
    for key, value in expected.items():
        compare.same(f"model.backbone.{key}", ours[key], value)


def _head(compare, config, key, theirs, record):
    ours, where = (
        _fields(HEADS, {**config.model.heads[key], **declared_fields(config.model)[key]}),
        f"model.heads.{key}",
    )
    name, fields = HEAD_FIELDS[theirs["type"]]
    compare.same(f"{where}.name", ours["name"], name)
    count = 3 if record["model"]["backbone"]["type"] in ("FastSCNN", "CGNet", "MobileNetV3") else 4
    ours["in_index"], index = (
        [i % count for i in v] if isinstance(v, list) else v % count
        for v in (ours["in_index"], theirs.get("in_index", -1))
    )
    index = (
        index[-1] if name == "enc" else index
    )  # theirs are for lateral connections, which no published model has
    compare.same(f"{where}.in_index", ours["in_index"], index)
    compare.same(f"{where}.channels", ours["channels"], theirs["channels"])
    for field in set(theirs) - ELSEWHERE - set(fields):
        compare.differences.append(f"{where}: nothing stands for {field} = {theirs[field]}")
    for field, (mine, default) in fields.items():
        value = theirs.get(field, default)
        compare.same(
            f"{where}.{field}",
            ours[mine] if isinstance(mine, str) and mine in ours else mine,
            value,
        )
    if name in ("fcn", "aspp"):
        compare.same(
            f"{where}.separable", ours["separable"], theirs["type"].startswith("DepthwiseSeparable")
        )
    if name == "aspp":
        compare.same(
            f"{where}.low_level_index",
            ours["low_level_index"],
            0 if "c1_channels" in theirs else None,
        )
    _loss(compare, config, key, theirs)
    compare.same(
        "model.dropout_rate", config.model.dropout_rate, max(theirs.get("dropout_ratio", 0.1), 0)
    )
    compare.same(
        "model.align_corners", config.model.align_corners, theirs.get("align_corners", False)
    )
    compare.same("model.num_classes", config.model.num_classes, theirs["num_classes"])
    norm = theirs.get("norm_cfg", {})
    if norm:
        compare.same("model.norm.epsilon", config.model.norm.epsilon, norm.get("eps", 1e-5))
        compare.same(
            "model.norm.momentum", config.model.norm.momentum, 1 - norm.get("momentum", 0.1)
        )


def _loss(compare, config, key, theirs):
    loss, sampler, where = theirs["loss_decode"], theirs.get("sampler") or {}, f"losses.{key}"
    ours = config.losses[key]
    compare.same(
        f"{where}.name",
        ours.name,
        "point_cross_entropy" if theirs["type"] == "PointHead" else "cross_entropy",
    )
    compare.same(f"{where}.weight", ours.weight, loss["loss_weight"])
    compare.same(f"{where}.sigmoid", ours.sigmoid, loss["use_sigmoid"])
    compare.same(f"{where}.class_weight", ours.class_weight, loss.get("class_weight", []))
    compare.same(f"{where}.average", ours.average, "all")
    compare.same(f"{where}.sampler.name", ours.sampler.name, "ohem" if sampler else "")
    if sampler:
        compare.same(f"{where}.sampler.min_kept", ours.sampler.min_kept, sampler["min_kept"])
    if "loss_se_decode" in theirs:
        compare.same(
            "losses.presence.weight",
            config.losses.presence.weight,
            theirs["loss_se_decode"]["loss_weight"],
        )
    if theirs["type"] == "DAHead":
        compare.same(
            "weights of losses.pam and .cam",
            [config.losses.pam.weight, config.losses.cam.weight],
            [loss["loss_weight"]] * 2,
        )


def _training(compare, config, record):
    wrapper, optimizer = record["optimizer"], record["optimizer"]["optimizer"]
    compare.same("steps", config.steps, record["max_iters"])
    compare.same("batch_size", config.batch_size, record["gpus"] * record["batch_per_gpu"])
    compare.same("eval_every", config.eval_every, record["eval_every"])
    compare.same("checkpoint_every", config.checkpoint_every, record["eval_every"])
    compare.same(
        "pretrained", config.pretrained, re.sub("^https.*/", "", record["pretrained"] or "")
    )
    mixed = wrapper["type"] == "AmpOptimWrapper"
    compare.same("precision", config.precision, "float16" if mixed else "float32")
    compare.same("loss_scale", config.loss_scale, wrapper["loss_scale"] if mixed else 0.0)
    compare.same("optimizer.name", config.optimizer.name, optimizer["type"].lower())
    compare.same("optimizer.learning_rate", config.optimizer.learning_rate, optimizer["lr"])
    compare.same("optimizer.weight_decay", config.optimizer.weight_decay, optimizer["weight_decay"])
    if "momentum" in optimizer:
        compare.same("optimizer.momentum", config.optimizer.momentum, optimizer["momentum"])
    compare.same(
        "optimizer.b1, b2",
        [config.optimizer.b1, config.optimizer.b2],
        optimizer.get("betas", [0.9, 0.999]),
    )
    compare.same(
        "optimizer.clip_norm",
        config.optimizer.clip_norm,
        (wrapper.get("clip_grad") or {"max_norm": 0.0})["max_norm"],
    )
    rules = {
        key: rule for key, rule in config.optimizer.multipliers.items() if key != "frozen"
    }  # EMANet's, which 1.x does in code
    published = wrapper.get("paramwise_cfg", {}).get("custom_keys", {})
    compare.same("presence of optimizer.multipliers", bool(rules), bool(published))
    for key, factors in published.items():
        path = (
            "backbone/conv1/kernel"
            if key == "backbone"
            else f"decode_head/dnl_block/{key}/conv/kernel"
        )
        matching = [rule for rule in rules.values() if re.search(rule.pattern, path)]
        ours = [
            math.prod(rule[kind] for rule in matching) for kind in ("learning_rate", "weight_decay")
        ]
        theirs = [
            factors.get("lr_mult", 1.0),
            factors.get("decay_mult", factors.get("wd_mult", 1.0)),
        ]
        compare.same(f"optimizer.multipliers on {path}", ours, theirs)


def _schedule(compare, config, record):
    *warmup, main = record["schedule"]
    ours = config.schedule
    compare.same("schedule.warmup_steps", ours.warmup_steps, warmup[0]["end"] if warmup else 0)
    if warmup:
        compare.same("schedule.warmup_factor", ours.warmup_factor, warmup[0]["start_factor"])
    compare.same(
        "schedule.name", ours.name, {"PolyLR": "poly", "MultiStepLR": "step"}[main["type"]]
    )
    if main["type"] == "PolyLR":
        compare.same("schedule.power", ours.power, main["power"])
        compare.same("schedule.end_value", ours.end_value, float(main["eta_min"]))
        compare.same("steps", config.steps, main["end"])
    else:
        compare.same("schedule.boundaries", ours.boundaries, main["milestones"])


def _data(compare, config, record):
    train, test = (
        {step["type"]: step for step in record[f"{which}_pipeline"]} for which in ("train", "test")
    )
    ours, evaluation = config.dataset, config.eval
    if record["dataset"] in DATASETS:
        compare.same("dataset.name", ours.name, DATASETS[record["dataset"]])
    compare.same("eval.dataset", evaluation.dataset, DATASETS.get(record["eval_dataset"], ""))
    compare.same("dataset.crop_size", ours.crop_size, record["crop_size"])
    if (
        record["dataset"] != "MapillaryDataset_v1"
    ):  # whose 1.x file names 1280x1280, but leaves the pipeline's 512x1024
        compare.same("dataset.crop_size", ours.crop_size, train["RandomCrop"]["crop_size"])
    compare.same(
        "dataset.cat_max_ratio", ours.cat_max_ratio, train["RandomCrop"].get("cat_max_ratio", 1.0)
    )
    compare.same("dataset.resize", ours.resize, train["RandomResize"]["scale"])
    compare.same("dataset.ratio_range", ours.ratio_range, train["RandomResize"]["ratio_range"])
    compare.same("dataset.flip", ours.flip, train["RandomFlip"]["prob"])
    compare.same("dataset.photometric", ours.photometric, "PhotoMetricDistortion" in train)
    compare.same("dataset.image_mean", ours.image_mean, record["image_mean"])
    compare.same("dataset.image_std", ours.image_std, [float(v) for v in record["image_std"]])
    compare.same("eval.resize", evaluation.resize, test["Resize"]["scale"])
    published = record["model"]["test_cfg"]
    compare.same("eval.mode", evaluation.mode, published["mode"])
    if published["mode"] == "slide":
        compare.same("eval.crop_size", evaluation.crop_size, published["crop_size"])
        compare.same("eval.stride", evaluation.stride, published["stride"])
    if "subdivision_steps" in published:
        point = config.model.heads.decode
        compare.same(
            "subdivisions",
            [point.subdivision_steps, point.subdivision_points],
            [published["subdivision_steps"], 8196],
        )


def differences(record):
    """What our config of a record has otherwise, as sentences."""
    compare, config, model = Comparison(), get_experiment(record["name"]), record["model"]
    _backbone(compare, config.model.backbone, record)
    auxiliary, decode = (
        [h] if isinstance(h, dict) else h or []
        for h in (model.get("auxiliary_head"), model["decode_head"])
    )
    heads = {f"aux_{i}": head for i, head in enumerate(auxiliary)}
    heads |= {f"stage_{i}": head for i, head in enumerate(decode[:-1])} | {"decode": decode[-1]}
    compare.same("heads", sorted(config.model.heads), sorted(heads))
    for key, head in heads.items():
        if key in config.model.heads:
            _head(compare, config, key, head, record)
    neck = model.get("neck", {})
    compare.same(
        "model.neck",
        [config.model.neck.name, config.model.neck.get("channels")],
        ["fpn" if neck else "", neck.get("out_channels")],
    )
    _training(compare, config, record)
    _schedule(compare, config, record)
    _data(compare, config, record)
    return compare.differences


@pytest.mark.parametrize("method", METHODS)
def test_every_published_config_is_as_published(method):
    wrong = {r["name"]: differences(r) for r in RECORDS if r["config_file"] == method}
    lines = [f"{name}: {difference}" for name, found in wrong.items() for difference in found]
    assert not lines, "\n".join(lines[:30])


@functools.cache
def _parameters(model_json):
    """Parameters in all, and without auxiliary heads, of a config.model as JSON."""
    model = create_model(json.loads(model_json))
    variables = jax.eval_shape(
        lambda key: model.init({"params": key, "points": key}, jnp.zeros((1, 64, 64, 3))),
        jax.random.key(0),
    )
    counts = {
        part: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
        for part, tree in variables["params"].items()
    }
    return sum(counts.values()), sum(
        n for part, n in counts.items() if not part.startswith("auxiliary")
    )


def _check_parameters(record):
    counts = _parameters(json.dumps(get_experiment(record["name"]).model.to_dict()))
    assert counts == (record["params_total"], record["params_inference"]), record["name"]


@pytest.mark.parametrize("method", METHODS)
def test_one_model_a_method_has_the_published_number_of_parameters(method):
    _check_parameters(
        min((r for r in RECORDS if r["config_file"] == method), key=lambda r: r["params_total"])
    )


@pytest.mark.zoo
@pytest.mark.parametrize("method", METHODS)
def test_every_model_has_the_published_number_of_parameters(method):
    for record in RECORDS:
        if record["config_file"] == method:
            _check_parameters(record)


COMPOSITIONS = (
    "fcn_m-v2-d8 pspnet_hr18s deeplabv3_s50-d8 deeplabv3plus_m-v3s-d8 upernet_m-v2-d8 "
    "fpn_hr18s ocrnet_r18 ocrnet_m-v3s-d8 pointrend_r18-d8"
)


@pytest.mark.parametrize("name", COMPOSITIONS.split())
def test_methods_and_backbones_compose(name):
    model = create_model(name, num_classes=5)
    images = jax.ShapeDtypeStruct((1, 64, 96, 3), jnp.float32)
    (logits, out), _ = jax.eval_shape(
        lambda x: model.init_with_output(jax.random.key(0), x), images
    )
    assert logits.shape == (1, 64, 96, 5) and "decode" in out


def test_a_named_batch_scales_the_learning_rate():
    small, large = (
        get_experiment(f"cgnet_680x680_60k{batch}_cityscapes") for batch in ("", "_b32")
    )
    assert large.batch_size == 2 * small.batch_size
    assert large.optimizer.learning_rate == pytest.approx(2 * small.optimizer.learning_rate)


def test_variants_say_what_is_wrong():
    with pytest.raises(ConfigError, match="m-v2-d8"):
        parse_variant("fcn", "m-v2-d9_512x1024_80k_cityscapes")
    joined = get_experiment("fcn_hr48_512x1024_40k_cityscapes").model
    assert declared_fields(joined)["decode"]["channels"] == 720
