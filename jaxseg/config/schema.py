"""What every field of a config may hold: its type, its length and its range, in one table."""

import functools
import inspect
import math
import numbers
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxseg.config.defaults import AUTO, DATASETS, NO_NODATA
from jaxseg.losses import LOSSES, SUPPLIED, options_of
from jaxseg.models import BACKBONES, HEADS, NECKS
from jaxseg.registry import lookup

PRECISIONS = ("float32", "bfloat16", "float16")
SOURCES = ("files", "tfds")
DTYPES = ("uint8", "uint16", "float32")  # of images once decoded
LARGEST = 1e9  # of weights and factors: far from what float32 holds
TYPES = {
    bool: (bool, np.bool_),
    int: numbers.Integral,
    float: numbers.Real,
    str: str,
    object: object,
}

# What other trainers call a field: their word -> ours, offered where ours is a field.
SYNONYMS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("lr", "lr_mult", "base_lr", "rate"), ("learning_rate",)),
    **dict.fromkeys(("wd", "decay_mult", "wd_mult", "decay"), ("weight_decay",)),
    **dict.fromkeys(("min_lr", "eta_min", "end_lr"), ("end_value",)),
    **dict.fromkeys(("betas", "beta1"), ("b1",)),
    **dict.fromkeys(("max_iters", "iterations", "epochs", "max_epochs"), ("steps",)),
    **dict.fromkeys(("samples_per_gpu", "bs"), ("batch_size",)),
    **dict.fromkeys(("data_root", "path", "folder", "img_dir", "dir"), ("root",)),
    **dict.fromkeys(("scale", "img_scale", "size"), ("scales", "resize", "crop_size")),
    **dict.fromkeys(("grad_clip", "max_norm", "clip"), ("clip_norm",)),
    **dict.fromkeys(("dropout", "dropout_ratio"), ("dropout_rate",)),
    **dict.fromkeys(("load_from", "weights", "checkpoint"), ("init_from",)),
    **dict.fromkeys(("freeze", "frozen", "norm_eval", "freeze_bn"), ("freeze_statistics",)),
    **dict.fromkeys(("key", "regex", "custom_keys"), ("pattern",)),
    "beta2": ("b2",), "eps": ("epsilon",), "epsilon": ("eps",), "warmup_iters": ("warmup_steps",),
    "warmup_ratio": ("warmup_factor",), "milestones": ("boundaries",), "gamma": ("decay",), "type": ("name",),
    "mean": ("image_mean",), "std": ("image_std",), "loss_weight": ("weight",), "use_sigmoid": ("sigmoid",),
    "thresh": ("threshold",), "times": ("repeat",), "split": ("train_split",), "workers": ("num_workers",),
    "bn_momentum": ("momentum",), "reduction": ("average",), "in_channels": ("channels",),
}  # fmt: skip


# --- The table --------------------------------------------------------------------------------------------------------


class Field(NamedTuple):
    """What a field may hold.

    Attributes:
        kind: type of the value, or of each of several; `float` takes whole numbers, and finite ones only.
        words: what it must be, to complete the sentence "it must be ...".
        holds: whether a value, or several as arguments, can be meant.
        length: None for one value, n for a tuple of n, 0 for one of any length.
        single: one value may stand in place of a tuple.
        others: values allowed besides.
        names: where it is a name, those there are.
    """

    kind: type
    words: str
    holds: Callable[..., Any] = lambda *values: True
    length: int | None = None
    single: bool = False
    others: tuple = ()
    names: tuple[str, ...] = ()


class Each(NamedTuple):
    """A dict of entries under labels that match a pattern, by default any; `example` shows one entry."""

    node: Any
    example: str
    labels: str = ".*"
    words: str = ""


class Part(NamedTuple):
    """A dict whose fields depend on what it holds: `fields(part, path)`; only `required` ones must be there."""

    fields: Callable[[Mapping, str], dict[str, Any]]
    required: tuple[str, ...] = ("name",)


def _whole(low: int, words: str = "", high: int = 2**31 - 1) -> Field:
    return Field(int, words or f"a whole number, {low} or more", lambda n: low <= n <= high)


def _name(*names: str) -> Field:
    return Field(str, "one of " + ", ".join(repr(name) for name in names), names=names)


FLAG, TEXT = Field(bool, "True or False"), Field(str, "text")
SHARE = Field(float, "a probability, 0 to 1", lambda p: 0 <= p <= 1)
BELOW_1 = Field(float, "0 or more and below 1", lambda p: 0 <= p < 1)
POSITIVE = Field(float, "above 0", lambda x: 0 < x <= LARGEST)
FACTOR = Field(float, f"0 or more, at most {LARGEST:g}", lambda x: 0 <= x <= LARGEST)
AT_END = _whole(0, "a whole number of steps, 0 (at the end only) or more")
SIZE = Field(int, "(height, width) in pixels", lambda *pair: min(pair) >= 1, length=2)
WINDOW = Field(int, "(height, width) in pixels, or (0, 0)", lambda *pair: min(pair) >= 0, length=2)
RESIZE = Field(
    int,
    "(long, short) in pixels, or (0, 0)",
    lambda a, b: a >= 1 and b >= 1 or a == b == 0,
    length=2,
)
MOMENTUM = Field(
    float,
    "0.5 or more and below 1: it is the share of the old statistics that stays, so that PyTorch's momentum 0.1 is "
    "0.9 here",
    lambda m: 0.5 <= m < 1,
)  # fmt: skip
CLASS_WEIGHT = Field(
    float, f"one number a class, each 0 to {LARGEST:g} and not all 0, or 'auto', or () for none",
    lambda *w: not w or min(w) >= 0 < max(w) <= LARGEST, length=0, others=(AUTO,),
)  # fmt: skip

NODATA = Field(
    object, "the values that stand for missing data, finite or 'nan'; () for those that files declare, or 'none'",
    lambda *v: all(x == "nan" or isinstance(x, numbers.Real) and math.isfinite(x) for x in v), length=0, others=(NO_NODATA,),
)  # fmt: skip

# Options of losses; where they mean different things, by (loss, option).
LOSS_FIELDS: dict[Any, Any] = {
    "average": _name("all", "valid"),
    "sigmoid": FLAG,
    "class_weight": CLASS_WEIGHT,
    "sampler": dict(
        name=_name("", "ohem"), min_kept=_whole(1, "a whole number of pixels a sample, 1 or more"),
        threshold=Field(float, "a probability, 0 (none) to 1", lambda p: 0 <= p <= 1),
    ),
    "gamma": Field(float, "0 or more, at most 100", lambda g: 0 <= g <= 100),
    ("focal", "alpha"): Field(
        float, "0 to 1, one number or one a class", lambda *a: a and 0 <= min(a) <= max(a) <= 1, length=0, single=True
    ),
    "alpha": FACTOR,
    "beta": FACTOR,
    "smooth": POSITIVE,
    "exponent": Field(float, "1 or more, at most 100", lambda e: 1 <= e <= 100),
    "masked": FLAG,
    "classes": _name("present", "all"),
    "per_image": FLAG,
}  # fmt: skip

# Fields of backbones, necks and heads: types are those of their classes; whole numbers are 1 or more unless said here.
MODULE_RANGES: dict[str, tuple[Callable[..., Any], str]] = {
    "in_index": (
        lambda *i: i,
        "the number of a feature map, or several where the head reads several",
    ),
    "low_level_index": (lambda i: True, "the number of a feature map, or None"),
    "stem_channels": (
        lambda n: n >= 2,
        "a whole number, 2 or more",
    ),  # whose half the first convolutions have
    "num_convs": (lambda n: n >= 0, "a whole number, 0 or more"),
    "kernel_size": (lambda n: n >= 1 and n % 2, "an odd number"),
    "multi_grid": (
        lambda *n: not n or min(n) >= 1,
        "one dilation a block of the last stage, or ()",
    ),
    "out_indices": (lambda *n: n and min(n) >= 0, "numbers of stages"),
    "subdivision_steps": (lambda n: n >= 0, "a whole number, 0 or more"),
    "importance": (lambda p: 0 <= p <= 1, "a share, 0 to 1"),
    "ratio": (lambda r: 0 < r <= 1, "above 0, at most 1"),
    "momentum": (lambda m: 0 < m <= 1, "above 0, at most 1"),
    "oversample": (lambda x: x >= 1, "1 or more"),
}
HEAD_RANGES: dict[str, tuple[Callable[..., Any], str]] = {
    "channels": (
        lambda n: n >= 0,
        "a whole number, 1 or more, or 0 for those of the maps that the head reads",
    ),
    "feature_strides": (
        lambda *s: not s or min(s) >= 1,
        "one stride a map, or () for those of the backbone",
    ),
}
HIDDEN = (
    "parent",
    "name",
    "layer",
    "num_classes",
    *SUPPLIED,
)  # arguments of modules and losses that no config gives
MODULE_NAMES = {
    "stem": ("v1", "v1c", "v1d"),
    "arch": ("large", "small"),
    "small_input": ("error", "global"),
}
# Other tuples of a backbone have the length of their default, those of a head any.
MODULE_LENGTHS = {"mask_size": 2, "pool_stride": 2, "multi_grid": 0, "out_indices": 0}


def _module_field(parameter: inspect.Parameter, what: str) -> Field | None:
    """The field of an argument of a backbone, neck or head (`what`); None for types that only its author knows."""
    name, options = parameter.name, typing.get_args(parameter.annotation) or (parameter.annotation,)
    plain = next((kind for kind in (bool, int, float, str) if kind in options), None)
    several = next(
        (part for part in (parameter.annotation, *options) if typing.get_origin(part) is Sequence),
        None,
    )
    kind = plain or (typing.get_args(several)[0] if several else None)
    if kind not in TYPES:
        return None
    if name in MODULE_NAMES:
        return _name(*MODULE_NAMES[name])
    usual_length = (
        len(parameter.default) if what == "backbone" and isinstance(parameter.default, tuple) else 0
    )
    length = MODULE_LENGTHS.get(name, usual_length) if several else None
    many = {None: "", 0: "one or more "}.get(length, f"{length} ")
    usual = {
        int: (
            lambda *n: n and min(n) >= 1,
            f"{many}whole numbers" if several else "a whole number",
        ),
        float: (lambda *x: x and min(x) > 0, "above 0"),
        bool: (FLAG.holds, FLAG.words),
        str: (TEXT.holds, TEXT.words),
    }
    ranges = MODULE_RANGES | (HEAD_RANGES if what == "head" else {})
    holds, words = ranges.get(name, usual[kind])
    words += ", 1 or more" if kind is int and name not in ranges else ""
    single = several is not None and plain is not None and several is not parameter.annotation
    return Field(kind, words, holds, length, single, (None,) if type(None) in options else ())


@functools.cache
def _module_fields(module: type, what: str) -> dict[str, Field | None]:
    return {
        n: _module_field(p, what)
        for n, p in inspect.signature(module).parameters.items()
        if n not in HIDDEN
    }


def _module(table: Mapping[str, type], what: str) -> Part:
    """A part of config.model: the arguments of the class that its `name` chooses."""

    def fields(part: Mapping, path: str) -> dict[str, Any]:
        module = lookup(
            table, part.get("name"), f"{what} at config.{path}.name", field=f"{path}.name"
        )
        return {"name": TEXT} | _module_fields(module, what)

    return Part(fields, ("name", "channels") if what == "head" else ("name",))


def _neck(part: Mapping, path: str) -> dict[str, Any]:
    return _module(NECKS, "neck").fields(part, path) if part.get("name") else {"name": TEXT}


def _loss(part: Mapping, path: str) -> dict[str, Any]:
    lookup(LOSSES, part.get("name"), f"loss at config.{path}.name", field=f"{path}.name")
    options = {
        o: LOSS_FIELDS.get((part["name"], o), LOSS_FIELDS.get(o)) for o in options_of(part["name"])
    }
    return {"name": TEXT, "target": TEXT, "weight": FACTOR} | options


MULTIPLIER = dict(
    pattern=Field(str, "a regular expression that is searched in parameter paths", re.compile), learning_rate=FACTOR,
    weight_decay=FACTOR, freeze_statistics=FLAG,
)  # fmt: skip
STATISTICS = Field(float, "one number a channel, or ()", length=0)

SCHEMA: dict[str, Any] = dict(
    name=TEXT,
    seed=_whole(0, "a whole number, 0 to 2**32 - 1", 2**32 - 1),
    steps=_whole(1), batch_size=_whole(1), log_every=_whole(1), keep_checkpoints=_whole(1),
    eval_every=AT_END, checkpoint_every=AT_END,
    precision=_name(*PRECISIONS),
    loss_scale=Field(float, "0 (dynamic) or above, at most 2**24", lambda s: 0 <= s <= 2**24),
    init_from=TEXT, pretrained=TEXT,
    model=dict(
        backbone=_module(BACKBONES, "backbone"),
        neck=Part(_neck),
        heads=Each(
            _module(HEADS, "head"), "{'name': 'fcn', 'in_index': -1, 'channels': 512}", r"decode|(aux|stage)_\d+",
            "decode, aux_0, aux_1, ... (auxiliary heads) or stage_0, ... (of a cascade)",
        ),
        num_classes=_whole(1)._replace(others=(None,)),
        align_corners=FLAG,
        dropout_rate=BELOW_1._replace(words="a probability, 0 or more and below 1"),
        norm=dict(momentum=MOMENTUM, epsilon=Field(float, "above 0, at most 1", lambda e: 0 < e <= 1)),
    ),
    losses=Each(Part(_loss), "{'name': 'dice', 'target': 'decode', 'weight': 1.0}"),
    dataset=dict(
        name=_name(*DATASETS), source=_name(*SOURCES), root=TEXT, train_split=TEXT, val_split=TEXT,
        concat=Each(
            dict(name=_name(*DATASETS), source=_name(*SOURCES), root=TEXT, train_split=TEXT, repeat=_whole(1)),
            "{'name': 'folder', 'root': 'data/more', 'repeat': 1}",
        ),
        class_balance=Field(float, "a share of the images, 0 (off) to 1", lambda t: 0 <= t <= 1),
        crop_size=SIZE, resize=RESIZE,
        ratio_range=Field(
            float, "(lowest, highest), in this order and above 0", lambda a, b: 0 < a <= b <= 100, length=2
        ),
        cat_max_ratio=Field(float, "a share above 0, 1 for no limit", lambda p: 0 < p <= 1),
        **dict.fromkeys(("class_crop", "flip", "vertical_flip", "rotate", "cutout", "clahe", "mosaic"), SHARE),
        rotate_degrees=Field(float, "an angle in degrees, 0 to 180", lambda a: 0 <= a <= 180),
        photometric=FLAG,
        channels=_whole(1), dtype=_name("", *DTYPES),
        image_mean=STATISTICS,
        image_std=Field(float, "one number a channel, each above 0, or ()", lambda *s: all(x > 0 for x in s), length=0),
        nodata=NODATA,
        max_pixels=_whole(0, "a whole number, 0 (any number) or more", 2**63 - 1),
        classes=Field(str, "class names in the order of the labels' numbers, or ()", length=0),
        match_classes=_name("order", "name"),
        num_workers=_whole(0), check_samples=_whole(0),
    ),
    optimizer=dict(
        name=_name("sgd", "adam", "adamw"),
        learning_rate=Field(float, "above 0, at most 100", lambda r: 0 < r <= 100),
        momentum=BELOW_1, b1=BELOW_1, b2=BELOW_1,
        weight_decay=Field(float, "0 or more, at most 10", lambda d: 0 <= d <= 10),
        eps=Field(float, "above 0, at most 1", lambda e: 0 < e <= 1),
        clip_norm=Field(float, f"0 (off) or more, at most {LARGEST:g}", lambda n: 0 <= n <= LARGEST),
        multipliers=Each(
            Part(lambda part, path: MULTIPLIER, ("pattern",)), "{'pattern': '^backbone/', 'learning_rate': 0.1}"
        ),
    ),
    schedule=dict(
        name=_name("poly", "step", "cosine", "constant"),
        power=Field(float, "0 or more, at most 100", lambda p: 0 <= p <= 100),
        end_value=FACTOR,
        warmup_steps=_whole(0),
        warmup_factor=Field(float, "a share of the learning rate, 0 to 1", lambda f: 0 <= f <= 1),
        boundaries=Field(
            int, "rising numbers of steps", lambda *b: all(x < y for x, y in zip((0, *b), b)), length=0
        ),
        decay=Field(float, "a factor above 0, at most 1", lambda d: 0 < d <= 1),
    ),
    eval=dict(
        dataset=_name("", *DATASETS), source=_name("", *SOURCES), root=TEXT, resize=RESIZE,
        mode=_name("whole", "slide"), crop_size=WINDOW, stride=WINDOW,
        scales=Field(
            float, "one or more ratios above 0, at most 32; (1.0,) for none",
            lambda *s: s and 0 < min(s) <= max(s) <= 32, length=0,
        ),
        flip=FLAG, batch_size=_whole(1),
    ),
)  # fmt: skip
PATHS = ("dataset.root", "eval.root", "init_from")  # and the roots of dataset.concat
