"""The experiment: frozen dataclasses whose fields are each declared once.

`Experiment` has the same structure and field names as the ConfigDict that it was resolved from;
`to_dict` and `from_dict` convert between it and the plain dicts of config.json. `SCHEMA` is the
same declaration as nested nodes, which the checks of ConfigDicts walk.
"""

import dataclasses
import math
import numbers
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from flax.core import FrozenDict

from jaxseg.config.defaults import DATASETS, NO_NODATA
from jaxseg.config.fields import (
    BELOW_ONE,
    FACTOR,
    FLAG,
    INTERVAL,
    LARGEST,
    PROBABILITY,
    RESIZE,
    SIZE,
    TEXT,
    WINDOW,
    Each,
    Field,
    Open,
    Part,
    declare,
    declare_entries,
    name_of,
    whole,
)

SCHEMA_VERSION = 2  # of config.json; the first edition wrote none
PRECISIONS = ("float32", "bfloat16", "float16")
SOURCES = ("files", "tfds")
DTYPES = ("uint8", "uint16", "float32")  # of decoded images
HEAD_LABELS = r"decode|(aux|stage)_\d+"
HEAD_LABELS_IN_WORDS = "decode, aux_0, aux_1, ... (auxiliary heads) or stage_0, ... (of a cascade)"
HEAD_EXAMPLE = "{'name': 'fcn', 'in_index': -1, 'channels': 512}"
LOSS_EXAMPLE = "{'name': 'dice', 'target': 'decode', 'weight': 1.0}"

T = TypeVar("T")


class _Options:
    """Base of dataclasses with a `name` and `options`, further fields that depend on the name."""

    name: str
    options: Mapping[str, Any]

    def get(self, key: str, default: Any = None) -> Any:
        """Return a field or an option by name, or `default`."""
        return self.to_dict().get(key, default)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and the options as one plain dict."""
        names = (field.name for field in dataclasses.fields(self))  # type: ignore[arg-type]
        own = {name: getattr(self, name) for name in names if name != "options"}
        return own | thaw(self.options)


@dataclasses.dataclass(frozen=True)
class ModuleConfig(_Options):
    """A backbone, a neck or a head: the name of a class in `jaxseg.models`, and its arguments.

    Attributes:
        name: Key of BACKBONES, NECKS or HEADS; "" for no neck.
        options: Arguments of the class.
    """

    name: str = ""
    options: Mapping[str, Any] = dataclasses.field(default_factory=FrozenDict)


@dataclasses.dataclass(frozen=True)
class NormConfig:
    """Batch normalisation of the whole model."""

    momentum: float = declare(
        0.9,
        Field(
            float,
            "0.5 or more and below 1: it is the share of the old statistics that stays, so that "
            "PyTorch's momentum 0.1 is 0.9 here",
            lambda m: 0.5 <= m < 1,
        ),
        "Share of the old running statistics that stays at each step; PyTorch's 0.1 is 0.9 here.",
    )
    epsilon: float = declare(
        1e-5,
        Field(float, "above 0, at most 1", lambda e: 0 < e <= 1),
        "Added to the variance before the square root.",
    )


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The architecture that `jaxseg.models.create_model` builds.

    Attributes:
        backbone: Extracts feature maps from the image.
        neck: Joins the feature maps; its name is "" for none.
        heads: `decode`, and auxiliary heads (`aux_0`, ...) or earlier stages of a cascade
            (`stage_0`, ...).
        norm: Batch normalisation of all of them.
    """

    backbone: ModuleConfig
    neck: ModuleConfig
    heads: Mapping[str, ModuleConfig]
    norm: NormConfig
    num_classes: int | None = declare(
        None,
        whole(1)._replace(others=(None,)),
        "Number of classes; filled in from the data set.",
    )
    align_corners: bool = declare(
        False, FLAG, "How bilinear resizing treats corners; True for odd crops (769)."
    )
    dropout_rate: float = declare(
        0.1,
        BELOW_ONE._replace(words="a probability, 0 or more and below 1"),
        "Probability of dropping a channel before the classifier.",
    )


@dataclasses.dataclass(frozen=True)
class LossConfig(_Options):
    """One term of the training loss.

    Attributes:
        options: Further arguments of the loss function in `jaxseg.losses`.
    """

    name: str = declare(
        "",
        TEXT,
        "`cross_entropy`, `focal`, `dice`, `tversky` or `lovasz` of a head's scores; "
        "`point_cross_entropy` (PointRend) and `se_loss` (EncNet) of outputs of their own.",
    )
    target: str = declare(
        "", TEXT, "Output of the model that the loss is computed on; '' for the entry's own label."
    )
    weight: float = declare(1.0, FACTOR, "Factor of this term in the sum.")
    options: Mapping[str, Any] = dataclasses.field(default_factory=FrozenDict)


@dataclasses.dataclass(frozen=True)
class ConcatConfig:
    """A further data set whose training split is joined to the main one's."""

    name: str = declare("", name_of(*DATASETS), "Name of the data set.")
    source: str = declare("files", name_of(*SOURCES), "As `dataset.source`.")
    root: str = declare("", TEXT, "Folder of the data set.")
    train_split: str = declare(
        "", TEXT, "Split to read; `dataset.train_split` where it is not given."
    )
    repeat: int = declare(1, whole(1), "How often an epoch shows each of its images.")


def _is_nodata(*values: Any) -> bool:
    return all(v == "nan" or (isinstance(v, numbers.Real) and math.isfinite(v)) for v in values)


@dataclasses.dataclass(frozen=True)
class DatasetConfig:
    """The data to train on, and how images are read and augmented."""

    name: str = declare(
        "", name_of(*DATASETS), "Name of the data set (docs/data.md); `folder` for your own."
    )
    source: str = declare(
        "files", name_of(*SOURCES), "`files`, or `tfds` for what prepare_data.py or TFDS wrote."
    )
    root: str = declare("", TEXT, "Folder of the data set.")
    train_split: str = declare(
        "train", TEXT, "Training split; may be sliced, repeated and joined: `train[:100]+extra*2`."
    )
    val_split: str = declare("val", TEXT, "Evaluation split, written like `train_split`.")
    concat: Mapping[str, ConcatConfig] = declare_entries(
        ConcatConfig,
        Each(None, "{'name': 'folder', 'root': 'data/more', 'repeat': 1}"),
        "Further data sets with the same classes, joined to the training split.",
    )
    class_balance: float = declare(
        0.0,
        Field(float, "a share of the images, 0 (off) to 1", lambda t: 0 <= t <= 1),
        "Repeat-factor sampling: images with classes that fewer than this share of the images "
        "show are repeated.",
    )
    crop_size: tuple[int, int] = declare(
        (0, 0), SIZE, "(height, width) of a training crop in pixels."
    )
    resize: tuple[int, int] = declare(
        (0, 0),
        RESIZE,
        "(long, short) side in pixels that images are scaled to before the random ratio; (0, 0) "
        "keeps their size.",
    )
    ratio_range: tuple[float, float] = declare(
        (0.5, 2.0),
        Field(
            float,
            "(lowest, highest), in this order and above 0",
            lambda a, b: 0 < a <= b <= 100,
            length=2,
        ),
        "Range of the random scale.",
    )
    cat_max_ratio: float = declare(
        0.75,
        Field(float, "a share above 0, 1 for no limit", lambda p: 0 < p <= 1),
        "Largest share of a crop that one class may fill; such crops are drawn again, up to ten "
        "times.",
    )
    class_crop: float = declare(
        0.0,
        PROBABILITY,
        "Probability that a crop is placed on a pixel of a class drawn evenly from the label's.",
    )
    flip: float = declare(0.5, PROBABILITY, "Probability of mirroring left to right.")
    vertical_flip: float = declare(0.0, PROBABILITY, "Probability of mirroring top to bottom.")
    rotate: float = declare(0.0, PROBABILITY, "Probability of rotation.")
    rotate_degrees: float = declare(
        10.0,
        Field(float, "an angle in degrees, 0 to 180", lambda a: 0 <= a <= 180),
        "Largest angle of rotation in degrees.",
    )
    cutout: float = declare(0.0, PROBABILITY, "Probability of blacking out boxes; labels stay.")
    clahe: float = declare(
        0.0, PROBABILITY, "Probability of contrast-limited histogram equalisation."
    )
    mosaic: float = declare(0.0, PROBABILITY, "Probability of joining four images.")
    photometric: bool = declare(True, FLAG, "Random brightness, contrast, saturation and hue.")
    channels: int = declare(3, whole(1), "Channels of the decoded images.")
    dtype: str = declare(
        "",
        name_of("", *DTYPES),
        "Data type of the decoded images; '' for the first training image's.",
    )
    image_mean: tuple[float, ...] = declare(
        (),
        Field(float, "one number a channel, or ()", length=0),
        "Mean per channel in the images' own units; () for `statistics.json`, else ImageNet's "
        "for 8-bit RGB, else measured.",
    )
    image_std: tuple[float, ...] = declare(
        (),
        Field(
            float,
            "one number a channel, each above 0, or ()",
            lambda *s: all(x > 0 for x in s),
            length=0,
        ),
        "Standard deviation per channel, chosen like `image_mean`.",
    )
    nodata: tuple[Any, ...] = declare(
        (),
        Field(
            object,
            "the values that stand for missing data, finite or 'nan'; () for those that files "
            "declare, or 'none'",
            _is_nodata,
            length=0,
            others=(NO_NODATA,),
        ),
        "Values that stand for missing data, apart from those that TIFF files declare; `none` if "
        "every value was measured. Missing pixels are left out of statistics, become the mean for "
        "the network and 255 in labels and predictions.",
    )
    max_pixels: int = declare(
        2**30,
        whole(0, "a whole number, 0 (any number) or more", 2**63 - 1),
        "Largest number of pixels of an image or label, checked before decoding; 0 for no limit.",
    )
    classes: tuple[str, ...] = declare(
        (),
        Field(str, "class names in the order of the labels' numbers, or ()", length=0),
        "Class names in the order of the run; filled in from the data set and kept when a run is "
        "resumed or evaluated.",
    )
    match_classes: str = declare(
        "order",
        name_of("order", "name"),
        "For data that list the run's classes in another order: `order` refuses them, `name` "
        "maps labels by class name.",
    )
    num_workers: int = declare(
        0, whole(0), "Loading processes; 0 for threads of the training process."
    )
    check_samples: int = declare(
        500,
        whole(0),
        "Pairs of each split that are checked before step 0 where there are too many to check "
        "all; 0 for none.",
    )


def _is_pattern(pattern: str) -> bool:
    re.compile(pattern)  # the caller reports its error
    return True


@dataclasses.dataclass(frozen=True)
class MultiplierConfig:
    """A rule for the learning rate and weight decay of some parameters; factors multiply."""

    pattern: str = declare(
        "",
        Field(str, "a regular expression that is searched in parameter paths", _is_pattern),
        "Regular expression searched in the `a/b/c` paths of parameters.",
    )
    learning_rate: float = declare(1.0, FACTOR, "Factor of the learning rate.")
    weight_decay: float = declare(1.0, FACTOR, "Factor of the weight decay.")
    freeze_statistics: bool | None = declare(
        None,
        FLAG._replace(others=(None,)),
        "Whether batch norms whose parameters match keep their running statistics and normalise "
        "by them in training; None: exactly where `learning_rate` is 0.",
    )


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The optimiser."""

    name: str = declare("sgd", name_of("sgd", "adam", "adamw"), "Optimiser.")
    learning_rate: float = declare(
        0.01, Field(float, "above 0, at most 100", lambda r: 0 < r <= 100), "Peak learning rate."
    )
    momentum: float = declare(0.9, BELOW_ONE, "Momentum of SGD.")
    weight_decay: float = declare(
        5e-4,
        Field(float, "0 or more, at most 10", lambda d: 0 <= d <= 10),
        "L2 weight decay (of adamw: decoupled).",
    )
    b1: float = declare(0.9, BELOW_ONE, "Decay of Adam's first moment.")
    b2: float = declare(0.999, BELOW_ONE, "Decay of Adam's second moment.")
    eps: float = declare(
        1e-8, Field(float, "above 0, at most 1", lambda e: 0 < e <= 1), "Adam's epsilon."
    )
    clip_norm: float = declare(
        0.0,
        Field(float, f"0 (off) or more, at most {LARGEST:g}", lambda n: 0 <= n <= LARGEST),
        "Largest global norm of the gradient; 0 for no clipping.",
    )
    multipliers: Mapping[str, MultiplierConfig] = declare_entries(
        MultiplierConfig,
        Each(None, "{'pattern': '^backbone/', 'learning_rate': 0.1}"),
        "Rules for parameters whose path matches a pattern.",
    )


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate over the run."""

    name: str = declare(
        "poly", name_of("poly", "step", "cosine", "constant"), "Curve after the warm-up."
    )
    power: float = declare(
        0.9, Field(float, "0 or more, at most 100", lambda p: 0 <= p <= 100), "Exponent of `poly`."
    )
    end_value: float = declare(
        1e-4, FACTOR, "Learning rate at the last step of `poly` and `cosine`."
    )
    warmup_steps: int = declare(0, whole(0), "Steps of linear warm-up.")
    warmup_factor: float = declare(
        0.1,
        Field(float, "a share of the learning rate, 0 to 1", lambda f: 0 <= f <= 1),
        "Share of the learning rate at step 0.",
    )
    boundaries: tuple[int, ...] = declare(
        (),
        Field(
            int,
            "rising numbers of steps",
            lambda *b: all(x < y for x, y in zip((0, *b), b, strict=False)),
            length=0,
        ),
        "Steps after the warm-up at which `step` multiplies the learning rate by `decay`.",
    )
    decay: float = declare(
        0.1,
        Field(float, "a factor above 0, at most 1", lambda d: 0 < d <= 1),
        "Factor at each boundary of `step`.",
    )


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Evaluation and prediction."""

    dataset: str = declare(
        "",
        name_of("", *DATASETS),
        "Another data set with the same classes; '' for the training one's.",
    )
    source: str = declare("", name_of("", *SOURCES), "As `dataset.source`; '' for the same.")
    root: str = declare("", TEXT, "Its folder; '' for the same.")
    resize: tuple[int, int] = declare(
        (0, 0),
        RESIZE,
        "(long, short) side in pixels that test images are scaled to, ratio kept; (0, 0) keeps "
        "their size.",
    )
    mode: str = declare(
        "whole",
        name_of("whole", "slide"),
        "`whole` images, or `slide`: overlapping windows, averaged.",
    )
    crop_size: tuple[int, int] = declare((0, 0), WINDOW, "(height, width) of a window in pixels.")
    stride: tuple[int, int] = declare(
        (0, 0), WINDOW, "(vertical, horizontal) distance of windows in pixels."
    )
    scales: tuple[float, ...] = declare(
        (1.0,),
        Field(
            float,
            "one or more ratios above 0, at most 32; (1.0,) for none",
            lambda *s: bool(s) and 0 < min(s) <= max(s) <= 32,
            length=0,
        ),
        "Test-time augmentation: probabilities are averaged over these scales, each resized once "
        "from the original image.",
    )
    flip: bool = declare(False, FLAG, "Test-time augmentation: average with the mirror image.")
    batch_size: int = declare(1, whole(1), "Images or windows per device and pass.")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A resolved experiment, immutable: made by `jaxseg.config.resolve.resolve`.

    Attributes:
        model: The architecture.
        losses: Terms of the training loss by label; a term applies to the output that its `target`
            or else its label names.
        dataset: Training data and augmentation.
        optimizer: Optimiser.
        schedule: Learning rate schedule.
        eval: Evaluation and prediction.
    """

    name: str = declare("", TEXT, "Method and variant.")
    seed: int = declare(
        0,
        whole(0, "a whole number, 0 to 2**32 - 1", 2**32 - 1),
        "Seed of weights, data order, augmentation and dropout.",
    )
    steps: int = declare(1, whole(1), "Training steps.")
    batch_size: int = declare(
        1,
        whole(1),
        "Global batch size, divided over all devices. `_b16` in a variant also scales the "
        "learning rate; this field does not.",
    )
    eval_every: int = declare(0, INTERVAL, "Steps between evaluations; 0 for one at the end.")
    checkpoint_every: int = declare(0, INTERVAL, "Steps between checkpoints; 0 for one at the end.")
    keep_checkpoints: int = declare(
        2, whole(1), "Latest checkpoints to keep, in addition to the best by mIoU."
    )
    log_every: int = declare(50, whole(1), "Steps between log lines.")
    precision: str = declare(
        "float32",
        name_of(*PRECISIONS),
        "Type that the model computes in; parameters, statistics, losses and metrics are float32 "
        "always.",
    )
    loss_scale: float = declare(
        0.0,
        Field(float, "0 (dynamic) or above, at most 2**24", lambda s: 0 <= s <= 2**24),
        "Loss scale of float16: 0 for a dynamic one.",
    )
    init_from: str = declare(
        "",
        TEXT,
        "Workdir, checkpoint or weight file to start from; its backbone must match. Classifiers "
        "are matched by class name.",
    )
    pretrained: str = declare(
        "", TEXT, "ImageNet weights that the published run started from; used in messages only."
    )
    model: ModelConfig = dataclasses.field(kw_only=True)
    losses: Mapping[str, LossConfig] = declare_entries(
        LossConfig, Each(None, LOSS_EXAMPLE), "Terms of the training loss."
    )
    dataset: DatasetConfig = dataclasses.field(default_factory=DatasetConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)
    eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)

    def to_dict(self) -> dict[str, Any]:
        """Return the experiment as plain nested dicts, in the structure of the config."""
        return to_dict(self)


# --- Nodes ----------------------------------------------------------------------------------------


def nodes_of(part: type) -> dict[str, Any]:
    """Return {field: node} of a dataclass without nested parts."""
    return {f.name: f.metadata["node"] for f in dataclasses.fields(part) if "node" in f.metadata}


def _multiplier_fields(part: Mapping[str, Any], path: str) -> dict[str, Any]:
    del part, path
    return nodes_of(MultiplierConfig)


_MODULE = Open({"name": TEXT})
SCHEMA: dict[str, Any] = {
    **nodes_of(Experiment),
    "model": {
        "backbone": _MODULE,
        "neck": _MODULE,
        "heads": Each(
            Open({"name": TEXT}, ("name", "channels")),
            HEAD_EXAMPLE,
            HEAD_LABELS,
            HEAD_LABELS_IN_WORDS,
        ),
        **nodes_of(ModelConfig),
        "norm": nodes_of(NormConfig),
    },
    "losses": Each(Open(nodes_of(LossConfig)), LOSS_EXAMPLE),
    "dataset": nodes_of(DatasetConfig)
    | {"concat": nodes_of(DatasetConfig)["concat"]._replace(node=nodes_of(ConcatConfig))},
    "optimizer": nodes_of(OptimizerConfig)
    | {
        "multipliers": nodes_of(OptimizerConfig)["multipliers"]._replace(
            node=Part(_multiplier_fields, ("pattern",))
        )
    },
    "schedule": nodes_of(ScheduleConfig),
    "eval": nodes_of(EvalConfig),
}
PATHS = ("dataset.root", "eval.root", "init_from")  # and the roots of dataset.concat


def defaults_of(part: type) -> dict[str, Any]:
    """Return {field: default} of the declared fields of a dataclass."""
    return {
        f.name: f.default for f in dataclasses.fields(part) if f.default is not dataclasses.MISSING
    }


# --- Between dataclasses and dicts ----------------------------------------------------------------

_PARTS: dict[str, type] = {
    "model": ModelConfig,
    "backbone": ModuleConfig,
    "neck": ModuleConfig,
    "norm": NormConfig,
    "dataset": DatasetConfig,
    "optimizer": OptimizerConfig,
    "schedule": ScheduleConfig,
    "eval": EvalConfig,
}


def freeze(value: Any) -> Any:
    """Return `value` with FrozenDicts for mappings and tuples for lists, at any depth."""
    if hasattr(value, "items"):
        return FrozenDict({key: freeze(item) for key, item in value.items()})
    return tuple(freeze(item) for item in value) if isinstance(value, (list, tuple)) else value


def thaw(value: Any) -> Any:
    """Return `value` with plain dicts for mappings, at any depth."""
    if hasattr(value, "items"):
        return {key: thaw(item) for key, item in value.items()}
    return tuple(thaw(item) for item in value) if isinstance(value, (list, tuple)) else value


def from_dict(cls: type[T], values: Mapping[str, Any]) -> T:
    """Make a dataclass of this module from a mapping with the structure of the config.

    Args:
        cls: The dataclass, for instance `Experiment` or `ModelConfig`.
        values: A ConfigDict or dict that passed the checks; missing fields get their defaults.

    Returns:
        The dataclass.
    """
    arguments: dict[str, Any] = {}
    known = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key, value in values.items():
        if key not in known or key == "options":
            arguments.setdefault("options", {})[key] = value
        elif key == "heads":
            arguments[key] = FrozenDict({k: from_dict(ModuleConfig, v) for k, v in value.items()})
        elif "entry" in known[key].metadata:
            entry = known[key].metadata["entry"]
            arguments[key] = FrozenDict({k: from_dict(entry, v) for k, v in value.items()})
        elif key in _PARTS and hasattr(value, "items"):
            arguments[key] = from_dict(_PARTS[key], value)
        else:
            arguments[key] = freeze(value)
    if "options" in arguments:
        arguments["options"] = freeze(arguments["options"])
    return cls(**arguments)


def to_dict(part: Any) -> dict[str, Any]:
    """Return plain nested dicts of a dataclass of this module; the inverse of `from_dict`."""
    if isinstance(part, _Options):
        return part.to_dict()
    values = {}
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if dataclasses.is_dataclass(value):
            values[field.name] = to_dict(value)
        elif isinstance(value, Mapping):
            values[field.name] = {
                key: to_dict(item) if dataclasses.is_dataclass(item) else thaw(item)
                for key, item in value.items()
            }
        else:
            values[field.name] = value
    return values


# --- Defaults -------------------------------------------------------------------------------------

DATASET: dict[str, Any] = defaults_of(DatasetConfig) | {"concat": {}}
EVALUATION: dict[str, Any] = defaults_of(EvalConfig)
CONCAT: dict[str, Any] = defaults_of(ConcatConfig)
LOSS: dict[str, Any] = {"target": "", "weight": 1.0}
# Defaults of fields that a config may leave out, as configs of earlier versions do. The fields
# without a default (steps, batch_size) are required.
DEFAULTS: dict[str, Any] = {
    **{
        k: v for k, v in defaults_of(Experiment).items() if k not in ("name", "steps", "batch_size")
    },
    "model": {"neck": {"name": ""}, **defaults_of(ModelConfig), "norm": defaults_of(NormConfig)},
    "losses": {},
    "optimizer": defaults_of(OptimizerConfig) | {"multipliers": {}},
    "schedule": defaults_of(ScheduleConfig),
    "dataset": DATASET,
    "eval": EVALUATION,
}
