"""Experiments as data: parse a variant, fill in what data set, backbone and recipe imply, resolve and check.

A file in configs/ states one method's facts and calls `experiment`. Hyper-parameters are MMSegmentation's.
"""

import contextlib
import dataclasses
import importlib.machinery
import importlib.util
import inspect
import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_collections
from ml_collections import config_dict

from jaxseg.config.defaults import (
    BACKBONE_HELP,
    BACKBONES,
    CROSS_ENTROPY,
    DATASET,
    DATASETS,
    DEFAULTS,
    EVALUATION,
    IMAGENET,
    LOSS,
)
from jaxseg.config.fields import tidy
from jaxseg.config.resolve import (
    resolve as resolve,  # the last step of every config, though not called here
)
from jaxseg.errors import ConfigError, JaxsegError
from jaxseg.files import expand
from jaxseg.registry import lookup
from jaxseg.zoo import published

RECIPES = ("fp16", "rsb_adamw", "scratch")
GRAMMAR = """A variant is  [d6_][<backbone>][_fp16|_rsb_adamw|_scratch]_<H>x<W>_<N>k[_b<batch>]_<dataset>
  for example  r50-d8_512x1024_40k_cityscapes  or  r18-d8_240x320_2k_folder  (fast_scnn and cgnet have no backbone part)
  d6         dilation 6 in FCN's heads          fp16, rsb_adamw, scratch   the published recipes of these names
  <backbone> {backbones}
  <H>x<W>    training crop, height by width     <N>k   thousands of steps     b16  global batch (learning rate scaled with it)
  <dataset>  {datasets}
Any field can be overridden: --config.optimizer.learning_rate=0.02 --config.dataset.root=/data/mine"""


# --- Variants ---------------------------------------------------------------------------------------------------------


def grammar() -> str:
    """What a variant may be, for people."""
    others = " ".join(name for name, entry in BACKBONES.items() if entry["name"] != "resnet")
    return GRAMMAR.format(
        backbones=f"{BACKBONE_HELP} {others}".rstrip(), datasets=" ".join(DATASETS)
    )


@dataclasses.dataclass(frozen=True)
class Variant:
    """The parts of a variant; `text` is the whole."""

    text: str
    d6: bool
    backbone: str
    recipe: str
    crop_size: tuple[int, int]
    steps: int
    batch_size: int
    dataset: str

    @property
    def hrnet(self) -> bool:
        """Whether the backbone is an HRNet, whose methods join its maps and drop nothing out."""
        return BACKBONES.get(self.backbone, {}).get("name") == "hrnet"

    @property
    def output_stride(self) -> int:
        """Of the backbone, by its name; 32 where it says none."""
        found = re.search(r"-d(8|16|32)", self.backbone)
        return int(found[1]) if found else 32

    @property
    def trained_on(self) -> str:
        """The data set to train on: Cityscapes for those that only evaluate its models."""
        return DATASETS[self.dataset].get("train_on", self.dataset)

    def width(self, channels: int) -> int:
        """Channels of a head: a quarter on ResNet-18 and 34."""
        return channels // 4 if BACKBONES.get(self.backbone, {}).get("depth", 50) < 50 else channels


def parse_variant(method: str, text: str, backbones: Mapping[str, Any] | None = None) -> Variant:
    """Parse `text`; `backbones` limits or replaces the table ({} where the method brings its own).

    Raises ConfigError that names the wrong part, what is possible, and the nearest.
    """
    backbones = BACKBONES if backbones is None else backbones
    found = re.fullmatch(
        r"(?:(?P<model>.*)_)?(?P<h>\d+)x(?P<w>\d+)_(?P<k>\d+)k(?:_b(?P<batch>\d+))?_(?P<dataset>.+)",
        text or "",
    )
    if not found:
        problem = f"Cannot read the variant '{text}' of {method}: after the model come <H>x<W>_<N>k_<dataset>.\n{grammar()}"
        raise ConfigError(problem, field="variant")
    parts = (found["model"] or "").split("_")
    d6 = parts[0] == "d6"
    parts = [p for p in parts[d6:] if p]
    backbone = parts.pop(0) if parts and backbones else ""
    recipe = "_".join(parts)
    try:
        if backbones:
            lookup(backbones, backbone, "backbone")
        if recipe:
            lookup(
                dict.fromkeys(RECIPES),
                recipe,
                "recipe" if backbones else f"recipe ({method} brings its own backbone)",
            )
        lookup(DATASETS, found["dataset"], "data set")
    except ConfigError as error:
        problem = f"Variant '{text}' of {method}: {str(error).split(' Known:')[0]}\n{grammar()}"
        raise ConfigError(problem, field="variant") from None
    if d6 and method != "fcn":
        raise ConfigError(
            f"'d6' in '{text}' is a variant of fcn, not of {method}.", field="variant"
        )
    crop_size, steps = (int(found["h"]), int(found["w"])), int(found["k"]) * 1000
    if not all((*crop_size, steps)) or found["batch"] == "0":
        raise ConfigError(f"Crop, steps and batch in '{text}' must be positive.", field="variant")
    return Variant(
        text, d6, backbone, recipe, crop_size, steps, int(found["batch"] or 0), found["dataset"]
    )


# --- Building ---------------------------------------------------------------------------------------------------------


def fcn_auxiliary(**changes: Any) -> dict[str, Any]:
    """The auxiliary head nearly every method trains with: one convolution on the backbone's third map."""
    return dict(name="fcn", in_index=2, num_convs=1, concat_input=False) | changes


def joined_fcn() -> dict[str, Any]:
    """HRNet's decode head: one 1x1 convolution on the four maps joined, as wide as they are together."""
    return dict(
        name="fcn",
        in_index=(0, 1, 2, 3),
        channels=0,
        num_convs=1,
        kernel_size=1,
        concat_input=False,
    )


def cross_entropy(weight: float = 1.0, **changes: Any) -> dict[str, Any]:
    """A cross-entropy entry of config.losses with all its fields."""
    return merge(dict(name="cross_entropy", **LOSS | dict(weight=weight), **CROSS_ENTROPY), changes)


def aspp(variant: Variant, **changes: Any) -> dict[str, Any]:
    """DeepLab's decode head: rates 12, 24, 36 at output stride 8, half of them at more."""
    rate = 12 if variant.output_stride == 8 else 6
    return dict(name="aspp", dilations=(1, rate, 2 * rate, 3 * rate)) | changes


def ohem_if_multi_grid(variant: Variant) -> dict[str, Any]:
    """Losses of the published DeepLabs with multi-grid: hard example mining in the decode head."""
    return (
        dict(decode=dict(sampler=dict(name="ohem"))) if variant.backbone.endswith("mg124") else {}
    )


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes`, dicts within dicts merged rather than replaced; the result shares no dict with either."""
    merged = {
        key: merge(value, {}) if isinstance(value, Mapping) else value
        for key, value in base.items()
    }
    for key, value in changes.items():
        inner = merged.get(key) if isinstance(merged.get(key), Mapping) else {}
        merged[key] = merge(inner, value) if isinstance(value, Mapping) else value
    return merged


def _optimization(variant: Variant, table: Mapping[str, Any]) -> dict[str, Any]:
    """Optimiser and schedule of data set and recipe."""
    published = {key: table[key] for key in ("learning_rate", "weight_decay") if key in table}
    optimizer, schedule = DEFAULTS["optimizer"] | published, dict(DEFAULTS["schedule"])
    if variant.recipe == "rsb_adamw":
        optimizer |= dict(name="adamw", learning_rate=5e-4, weight_decay=0.05, clip_norm=1.0)
        boundaries = (variant.steps * 3 // 4, variant.steps * 9 // 10)
        schedule |= dict(name="step", warmup_steps=1000, warmup_factor=1e-3, boundaries=boundaries)
    elif variant.dataset == "mapillary_v1_65":
        slow_backbone = dict(
            backbone=dict(pattern="^backbone/", learning_rate=0.1, weight_decay=1.0)
        )
        optimizer |= dict(
            name="adamw",
            learning_rate=1e-4,
            weight_decay=1e-4,
            clip_norm=0.01,
            multipliers=slow_backbone,
        )
        schedule |= dict(end_value=0.0)
    return dict(optimizer=optimizer, schedule=schedule)


def _data(variant: Variant, table: Mapping[str, Any]) -> dict[str, Any]:
    """`dataset` and `eval`. An odd crop (769) scales images to one pixel more; it and some data sets are evaluated in windows."""
    odd = variant.crop_size[0] % 2
    resize = tuple(n + odd if n else 0 for n in table["resize"])
    trained_on = variant.trained_on
    dataset = dict(
        name=trained_on,
        crop_size=variant.crop_size,
        resize=resize,
        **({} if trained_on == "folder" else dict(dtype="uint8", **IMAGENET)),
    )
    evaluation = dict(
        dataset="" if trained_on == variant.dataset else variant.dataset, resize=table.get("eval_resize", resize),
        mode="slide" if odd or table.get("slide") else "whole", crop_size=variant.crop_size,
        stride=tuple(n * 2 // 3 + n % 2 for n in variant.crop_size),
    )  # fmt: skip
    return dict(dataset=DATASET | dataset, eval=EVALUATION | evaluation)


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
) -> ml_collections.ConfigDict:
    """The config of one experiment (fields: README and docs/config.md).

    decode, aux_0, aux_1, stage_0, ...: heads, {'name': ..., arguments}; `channels` defaults to 512 (auxiliary: 256), a quarter
    on ResNet-18. backbone: for a method that brings its own. losses: merged into one cross entropy a head, of weight 1
    (auxiliary: 0.4). changes: merged into the result last. batch_size: the method's own default.
    """
    variant = (
        variant
        if isinstance(variant, Variant)
        else parse_variant(method, variant, {} if backbone else None)
    )
    backbone = dict(backbone or BACKBONES[variant.backbone])
    pretrained = backbone.pop("pretrained", "")
    if variant.recipe == "rsb_adamw":
        if backbone["name"] != "resnet":
            other = variant.backbone or method
            problem = f"'rsb_adamw' in '{variant.text}' is a recipe for ResNets (7x7 stem), not for {other}."
            raise ConfigError(problem, field="variant")
        backbone["stem"] = "v1"
        pretrained = (
            "resnet50_8xb256-rsb-a1-600e_in1k_20211228-20e21305.pth"
            if backbone["depth"] == 50
            else ""
        )
    if pretrained not in {row["pretrained"] for row in published()}:
        pretrained = ""  # nobody published a run on this backbone
    heads = {"decode": dict(decode)} | {name: dict(head) for name, head in heads.items()}
    for name, head in heads.items():
        head.setdefault("channels", variant.width(256 if name.startswith("aux") else 512))
    table = DATASETS[variant.dataset]
    default_batch = batch_size or table.get("batch_size", 16)
    config = dict(
        name=f"{method}_{variant.text}",
        steps=variant.steps, batch_size=variant.batch_size or default_batch,
        eval_every=variant.steps // 10, checkpoint_every=variant.steps // 10,
        pretrained="" if variant.recipe == "scratch" else pretrained,
        model=dict(
            backbone=backbone, neck=dict(neck or {"name": ""}), heads=heads, align_corners=bool(variant.crop_size[0] % 2),
        ),
        losses=merge({name: cross_entropy(0.4 if name.startswith("aux") else 1.0) for name in heads}, losses or {}),
        **(dict(precision="float16", loss_scale=512.0) if variant.recipe == "fp16" else {}),
        **_optimization(variant, table),
        **_data(variant, table),
    )  # fmt: skip
    config = ml_collections.ConfigDict(merge(merge(DEFAULTS, config), changes or {}))
    tidy(config)
    # The learning rate goes with the batch where the variant names one.
    factor = (variant.batch_size or default_batch) / default_batch
    config.optimizer.learning_rate *= factor
    config.schedule.end_value *= factor
    config.model.num_classes = config_dict.placeholder(int)
    if config.dataset.name != "folder":
        from jaxseg.data.catalog import get_spec

        config.model.num_classes = get_spec(config.dataset.name).num_classes
    return config


# --- Finding ----------------------------------------------------------------------------------------------------------


def _folder() -> Path:
    """configs/: beside the package in a checkout, inside it when installed."""
    package = Path(__file__).resolve().parent.parent
    return next(f for f in (package.parent / "configs", package / "configs") if f.is_dir())


@contextlib.contextmanager
def _blaming(file: Path) -> Iterator[None]:
    """Turn what a config file's own code raises into a ConfigError with the line; faults elsewhere pass through."""
    try:
        yield
    except (JaxsegError, KeyboardInterrupt):
        raise
    except SyntaxError as error:
        raise ConfigError(
            f"line {error.lineno}: {error.msg}", file=error.filename or file, field="--config"
        ) from error
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        if frame.filename != str(file):
            raise
        problem = f"line {frame.lineno}: {type(error).__name__}: {error}"
        raise ConfigError(problem, file=file, field="--config") from error


def load_builder(file: str | Path) -> Callable[..., ml_collections.ConfigDict]:
    """`get_config` of a config file. Raises ConfigError if there is none."""
    file = expand(file)
    if not file.is_file():
        hint = "the methods are the files of configs/"
        raise ConfigError("there is no such file", file=file, field="--config", hint=hint)
    loader = importlib.machinery.SourceFileLoader(f"configs.{file.stem}", str(file))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    with _blaming(file):
        try:
            loader.exec_module(module)
        except (OSError, UnicodeDecodeError, ValueError) as error:
            if traceback.extract_tb(error.__traceback__)[-1].filename == str(file):
                raise
            raise ConfigError(
                f"cannot be read as Python ({error})", file=file, field="--config"
            ) from error
    if not callable(getattr(module, "get_config", None)):
        raise ConfigError(
            "is no config file: it has no function get_config", file=file, field="--config"
        )
    return module.get_config


def build(file: str | Path, variant: str = "") -> ml_collections.ConfigDict:
    """The config of a file in configs/ and a variant, before overrides.

    Args:
        file: its `get_config(variant)`, or `get_config()` where a method has no variants, gives a ConfigDict.
        variant: "" for the file's own default.

    Raises:
        ConfigError: no such file or variant, or a fault in the file's own code, with its line.
    """
    get_config, file = load_builder(file), expand(file)
    if variant and not inspect.signature(get_config).parameters:
        hint = f"use --config={file}"
        raise ConfigError(
            f"takes no variant, but '{variant}' is given", file=file, field="--config", hint=hint
        )
    with _blaming(file):
        config = get_config(variant) if variant else get_config()
    if not isinstance(config, ml_collections.ConfigDict):
        raise ConfigError(
            f"get_config gives {type(config).__name__}, not a ConfigDict",
            file=file,
            field="--config",
        )
    return config


def get_experiment(name: str) -> ml_collections.ConfigDict:
    """The config of '<file in configs>_<variant>', e.g. 'pspnet_r50-d8_512x1024_40k_cityscapes'. Raises ConfigError."""
    files = sorted((p.stem for p in _folder().glob("*.py")), key=len, reverse=True)
    method = next((f for f in files if name == f or name.startswith(f"{f}_")), None)
    if method is None:
        lookup(dict.fromkeys(sorted(files)), name.split("_")[0], "method")
    return build(_folder() / f"{method}.py", name[len(method) + 1 :])


def published_models() -> list[str]:
    """Short names: the published experiments' without precision, crop, schedule and data set."""
    names = (re.sub(r"_?\d+x\d+_\d+k.*", "", row["name"]) for row in published())
    return sorted({name.removesuffix("_fp16") for name in names})


def model_config(name: str) -> ml_collections.ConfigDict:
    """config.model of a short name such as 'pspnet_r50-d8', published or not; with Cityscapes' 19 classes and no odd crop."""
    if name == "quickstart":
        return get_experiment(name).model
    return get_experiment(f"{name}_512x1024_40k_cityscapes").model
