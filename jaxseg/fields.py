"""Every field of a config: its type, its length and its range, in one table; and the checks that read it.

`complete` fills in what a config leaves out, `tidy` brings values into their one form, `check` refuses a field that does
not exist and a value that cannot be meant.
"""

import difflib
import functools
import inspect
import math
import numbers
import os
import re
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from jaxseg import files
from jaxseg.errors import ConfigError
from jaxseg.losses import LOSSES, SUPPLIED, options_of
from jaxseg.models import BACKBONES, HEADS, NECKS
from jaxseg.models.names import choose
from jaxseg.presets import AUTO, CONCAT, CROSS_ENTROPY, DATASETS, DEFAULTS, LOSS

PRECISIONS = ("float32", "bfloat16", "float16")
SOURCES = ("files", "tfds")
DTYPES = ("uint8", "uint16", "float32")  # of images once decoded
LARGEST = 1e9  # of weights and factors: far from what float32 holds
TYPES = {bool: (bool, np.bool_), int: numbers.Integral, float: numbers.Real, str: str}

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


class UnknownField(ConfigError):
    """A config has a field that this version of jaxseg does not read."""


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
RESIZE = Field(int, "(long, short) in pixels, or (0, 0)", lambda a, b: a >= 1 and b >= 1 or a == b == 0, length=2)
MOMENTUM = Field(
    float, "0.5 or more and below 1: it is the share of the old statistics that stays, so that PyTorch's momentum 0.1 is 0.9 here",
    lambda m: 0.5 <= m < 1,
)  # fmt: skip
CLASS_WEIGHT = Field(
    float, f"one number a class, each 0 to {LARGEST:g} and not all 0, or 'auto', or () for none",
    lambda *w: not w or min(w) >= 0 < max(w) <= LARGEST, length=0, others=(AUTO,),
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
    ("focal", "alpha"): Field(float, "0 to 1, one number or one a class", lambda *a: a and 0 <= min(a) <= max(a) <= 1, 0, single=True),
    "alpha": FACTOR,
    "beta": FACTOR,
    "smooth": POSITIVE,
    "exponent": Field(float, "1 or more, at most 100", lambda e: 1 <= e <= 100),
    "masked": FLAG,
    "classes": _name("present", "all"),
    "per_image": FLAG,
}  # fmt: skip

# Fields of backbones, necks and heads: their types are those of their classes; whole numbers are 1 or more unless said here.
MODULE_RANGES: dict[str, tuple[Callable[..., Any], str]] = {
    "in_index": (lambda *i: i, "the number of a feature map, or several where the head reads several"),
    "low_level_index": (lambda i: True, "the number of a feature map, or None"),
    "num_convs": (lambda n: n >= 0, "a whole number, 0 or more"),
    "kernel_size": (lambda n: n >= 1 and n % 2, "an odd number"),
    "multi_grid": (lambda *n: not n or min(n) >= 1, "one dilation a block of the last stage, or ()"),
    "out_indices": (lambda *n: n and min(n) >= 0, "numbers of stages"),
    "subdivision_steps": (lambda n: n >= 0, "a whole number, 0 or more"),
    "importance": (lambda p: 0 <= p <= 1, "a share, 0 to 1"),
    "ratio": (lambda r: 0 < r <= 1, "above 0, at most 1"),
    "momentum": (lambda m: 0 < m <= 1, "above 0, at most 1"),
    "oversample": (lambda x: x >= 1, "1 or more"),
}
HIDDEN = ("parent", "name", "layer", "num_classes", *SUPPLIED)  # arguments of modules and losses that no config gives
MODULE_NAMES = {"stem": ("v1", "v1c", "v1d"), "arch": ("large", "small"), "small_input": ("error", "global")}
MODULE_LENGTHS = {"mask_size": 2, "pool_stride": 2, "multi_grid": 0, "out_indices": 0}  # others: backbones' default's, heads' any


def _module_field(parameter: inspect.Parameter, fixed: bool) -> Field | None:
    """The field of a module's argument; None for types that only its author knows."""
    name, options = parameter.name, typing.get_args(parameter.annotation) or (parameter.annotation,)
    plain = next((kind for kind in (bool, int, float, str) if kind in options), None)
    several = next((part for part in (parameter.annotation, *options) if typing.get_origin(part) is Sequence), None)
    kind = plain or (typing.get_args(several)[0] if several else None)
    if kind not in TYPES:
        return None
    if name in MODULE_NAMES:
        return _name(*MODULE_NAMES[name])
    length = None
    if several:
        length = MODULE_LENGTHS.get(name, len(parameter.default) if fixed and isinstance(parameter.default, tuple) else 0)
    many = {None: "", 0: "one or more "}.get(length, f"{length} ")
    usual = {
        int: (lambda *n: n and min(n) >= 1, f"{many}whole numbers, 1 or more" if several else "a whole number, 1 or more"),
        float: (lambda *x: x and min(x) > 0, "above 0"),
        bool: (FLAG.holds, FLAG.words),
        str: (TEXT.holds, TEXT.words),
    }
    holds, words = MODULE_RANGES.get(name, usual[kind])
    single = several is not None and plain is not None and several is not parameter.annotation
    return Field(kind, words, holds, length, single, (None,) if type(None) in options else ())


@functools.cache
def _module_fields(module: type, fixed: bool) -> dict[str, Field | None]:
    return {n: _module_field(p, fixed) for n, p in inspect.signature(module).parameters.items() if n not in HIDDEN}


def _module(table: Mapping[str, type], what: str, fixed: bool = False) -> Part:
    """A part of config.model: the arguments of the class that its `name` chooses."""

    def fields(part: Mapping, path: str) -> dict[str, Any]:
        module = choose(table, part.get("name"), f"{what} at config.{path}.name", field=f"{path}.name")
        return {"name": TEXT} | _module_fields(module, fixed)

    return Part(fields)


def _neck(part: Mapping, path: str) -> dict[str, Any]:
    return _module(NECKS, "neck").fields(part, path) if part.get("name") else {"name": TEXT}


def _loss(part: Mapping, path: str) -> dict[str, Any]:
    choose(LOSSES, part.get("name"), f"loss at config.{path}.name", field=f"{path}.name")
    options = {o: LOSS_FIELDS.get((part["name"], o), LOSS_FIELDS.get(o)) for o in options_of(part["name"])}
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
        backbone=_module(BACKBONES, "backbone", fixed=True),
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
        ratio_range=Field(float, "(lowest, highest), in this order and above 0", lambda a, b: 0 < a <= b <= 100, length=2),
        cat_max_ratio=Field(float, "a share above 0, 1 for no limit", lambda p: 0 < p <= 1),
        **dict.fromkeys(("class_crop", "flip", "vertical_flip", "rotate", "cutout", "clahe", "mosaic"), SHARE),
        rotate_degrees=Field(float, "an angle in degrees, 0 to 180", lambda a: 0 <= a <= 180),
        photometric=FLAG,
        channels=_whole(1), dtype=_name("", *DTYPES),
        image_mean=STATISTICS,
        image_std=STATISTICS._replace(words="one number a channel, each above 0, or ()", holds=lambda *s: all(x > 0 for x in s)),
        nodata=Field(float, "the values that stand for no data, or ()", length=0),
        max_pixels=_whole(1, high=2**63 - 1), match_classes=TEXT,
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
        warmup_steps=_whole(0), warmup_factor=Field(float, "a share of the learning rate, 0 to 1", lambda f: 0 <= f <= 1),
        boundaries=Field(
            int, "rising numbers of steps", lambda *b: all(x < y for x, y in zip((0, *b), b)), length=0
        ),
        decay=Field(float, "a factor above 0, at most 1", lambda d: 0 < d <= 1),
    ),
    eval=dict(
        dataset=_name("", *DATASETS), source=_name("", *SOURCES), root=TEXT, resize=RESIZE,
        mode=_name("whole", "slide"), crop_size=WINDOW, stride=WINDOW,
        scales=Field(float, "one or more ratios above 0, at most 32; (1.0,) for none", lambda *s: s and 0 < min(s) <= max(s) <= 32, length=0),
        flip=FLAG, batch_size=_whole(1),
    ),
)  # fmt: skip
PATHS = ("dataset.root", "eval.root", "init_from")  # and the roots of dataset.concat


# --- Filling in -------------------------------------------------------------------------------------------------------


def complete(config: ConfigDict) -> ConfigDict:
    """Put defaults (jaxseg.presets) in place of the fields that a config leaves out, as one of an earlier version does."""
    with config.unlocked(), config.ignore_type():
        _fill(config, DEFAULTS)
        for entry in _dicts(config.losses):
            named = entry.get("name") in ("cross_entropy", "point_cross_entropy")
            _fill(entry, LOSS | (CROSS_ENTROPY if named else {}))
        for entry in _dicts(config.dataset.get("concat")):
            _fill(entry, CONCAT | dict(train_split=config.dataset.train_split))
    return config


def complete_modules(config: ConfigDict) -> ConfigDict:
    """Put the defaults of modules' arguments, losses' options and multipliers in place of those that a config does not state.

    Two configs of one meaning are then equal, whichever version wrote them.
    """
    model = config.model
    parts = [(BACKBONES, model.get("backbone")), (NECKS, model.get("neck"))]
    parts += [(table, part) for table, entries in ((HEADS, model.get("heads")), (LOSSES, config.losses)) for part in _dicts(entries)]
    with config.unlocked(), config.ignore_type():
        for table, part in parts:
            if isinstance(part, ConfigDict) and part.get("name") in table:
                parameters = inspect.signature(table[part.name]).parameters.values()
                _fill(part, {p.name: p.default for p in parameters if p.name not in HIDDEN and p.default is not p.empty})
        for rule in _dicts(config.optimizer.multipliers):
            _fill(rule, dict(learning_rate=1.0, weight_decay=1.0))
            _fill(rule, dict(freeze_statistics=rule.learning_rate == 0))
    return config


def _fill(config: ConfigDict, defaults: Mapping) -> None:
    for key, value in defaults.items():
        if key not in config:
            config[key] = ConfigDict(value) if isinstance(value, Mapping) else value
        elif isinstance(value, Mapping) and isinstance(config[key], ConfigDict):
            _fill(config[key], value)


def _dicts(part: Any) -> list[ConfigDict]:
    return [entry for entry in part.values() if isinstance(entry, ConfigDict)] if isinstance(part, ConfigDict) else []


def tidy(config: ConfigDict, path: str = "") -> ConfigDict:
    """Bring values into their one form: tuples for lists and arrays, text for paths, with `~` expanded, ('auto',) for 'auto'."""
    with config.unlocked(), config.ignore_type():
        for key in list(config):
            value, where = config[key], f"{path}.{key}".lstrip(".")
            if isinstance(value, ConfigDict):
                tidy(value, where)
            elif (better := _tidied(value, where)) is not value:
                del config[key]  # else ConfigDict would cast a tuple to the list that was there
                config[key] = better
    return config


def _tidied(value: Any, path: str) -> Any:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if value == AUTO[0] and path.endswith(".class_weight"):
        return AUTO
    is_path = path in PATHS or re.fullmatch(r"dataset\.concat\.[^.]+\.root", path)
    return str(files.expand(value)) if is_path and isinstance(value, str) and value.startswith("~") else value


# --- Checking ---------------------------------------------------------------------------------------------------------


def check(config: Mapping, parts: Iterable[str] = ()) -> None:
    """Raise ConfigError, naming the field, for the first field that is unknown, missing or holds what cannot be meant.

    Args:
        config: a complete config.
        parts: the top fields to look at, all by default.
    """
    parts = tuple(parts)
    config = {key: config[key] for key in parts} if parts else config
    for error in problems(config, {key: SCHEMA[key] for key in parts} if parts else SCHEMA):
        raise error


def problems(value: Any, node: Any = None, path: str = "") -> Iterator[ConfigError]:
    """All that is wrong with a config, or with the part at `path` that `node` of SCHEMA describes."""
    node = SCHEMA if node is None else node
    if node is None or isinstance(node, Field):
        yield from () if node is None else _value_problems(value, node, path)
        return
    if not hasattr(value, "keys"):
        yield ConfigError(f"config.{path} is {value!r}", field=path, hint=f"it must be {describe(node)}")
        return
    if isinstance(node, Each):
        for key, entry in value.items():
            where = f"{path}.{key}"
            if not re.fullmatch(node.labels, str(key)):
                yield ConfigError(f"config.{path} has an entry '{key}'", field=where, hint=f"it must be {node.words}")
            elif hasattr(entry, "keys"):
                yield from problems(entry, node.node, where)
            else:
                yield ConfigError(f"config.{where} is {entry!r}", field=where, hint=f"it must be a dict, for instance {node.example}")
        return
    try:
        table, required = (node.fields(value, path), node.required) if isinstance(node, Part) else (node, tuple(node))
    except ConfigError as error:  # no module or loss of this name: nothing tells its fields
        yield error
        return
    for key in value:
        if key not in table:
            yield unknown_field(path, key, table, value.get("name", "") if isinstance(node, Part) else "")
    for key, inner in table.items():
        where = f"{path}.{key}".lstrip(".")
        if key in value:
            yield from problems(value[key], inner, where) if inner is not None else ()
        elif key in required:
            yield ConfigError(f"config.{where} is missing", field=where, hint=f"it must be {describe(inner)}")


def _value_problems(value: Any, field: Field, path: str) -> Iterator[ConfigError]:
    several = isinstance(value, tuple | list)
    if any(type(value) is type(other) and value == other for other in field.others):
        return
    values = tuple(value) if several else (value,)
    typed = all(isinstance(v, TYPES[field.kind]) and (field.kind is bool or not isinstance(v, bool | np.bool_)) for v in values)
    finite = field.kind is not float or typed and all(math.isfinite(v) for v in values)
    shaped = (several and field.length in (0, len(values))) if field.length is not None and not field.single else True
    shaped &= not several if field.length is None else True
    reason = ""
    try:
        good = typed and finite and shaped and field.holds(*values)
    except re.error as error:
        good, reason = False, f" ({error})"
    if good and field.names:
        try:
            choose(dict.fromkeys(field.names), value, f"config.{path}", field=path)
        except ConfigError as error:
            yield error
    elif not good:
        yield ConfigError(f"config.{path} is {value!r}", field=path, hint=f"it must be {field.words}{reason}")


def describe(node: Any) -> str:
    """What a field or part must be, in words."""
    if isinstance(node, Field):
        return node.words
    if isinstance(node, Each):
        return f"a dict of entries, {{'a label': {node.example}}}"
    required = node.required if isinstance(node, Part) else tuple(node)
    return f"a dict with {', '.join(required)}"


def find(config: Mapping, path: str) -> Any:
    """The node of SCHEMA that describes a field of `config`, None if there is none."""
    node, part, where = SCHEMA, config, ""
    for key in filter(None, path.split(".")):
        try:
            node = _entry(node, part, where).get(key) if not isinstance(node, Each) else node.node
        except ConfigError:
            return None
        part = part[key] if hasattr(part, "keys") and key in part else {}
        where = f"{where}.{key}".lstrip(".")
    return node


def known(config: Mapping, path: str) -> tuple[str, ...]:
    """The names of all fields that the part of `config` at `path` may have, () where they are labels or it has none."""
    part = functools.reduce(lambda part, key: part[key], filter(None, path.split(".")), config)
    node = find(config, path)
    try:
        return () if isinstance(node, Each) else tuple(_entry(node, part, path))
    except ConfigError:
        return ()


def _entry(node: Any, part: Mapping, path: str) -> dict[str, Any]:
    """The fields of a part, {} of what has none."""
    if isinstance(node, Part):
        return node.fields(part, path)
    return node if isinstance(node, dict) else {}


def unknown_field(path: str, key: str, known: Iterable[str], name: str = "") -> UnknownField:
    """The error for a field that the part of a config at `path`, a `name`, does not have, with the one that was meant."""
    known, key = [str(field) for field in known], str(key)
    meant = [field for field in SYNONYMS.get(key, ()) if field in known] or difflib.get_close_matches(key, known, 1, 0.5)
    near = f"did you mean '{meant[0]}'? " if meant else ""
    part = ".".join(filter(None, ("config", path))) + (f", '{name}'," if name else "")
    other = name and not meant and path.startswith("model.")  # fields of the module that stood there before
    whole = f'; to choose another name, give all of it: --config.{path}="{{...}}"' if other else ""
    return UnknownField(
        f"unknown field '{key}' of {part}".rstrip(","), field=f"{path}.{key}".lstrip("."), hint=f"{near}Known: {', '.join(known)}{whole}"
    )
