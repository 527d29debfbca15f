"""A config's last step: what depends on the data set is filled in, what cannot be meant is refused, and it is locked."""

import functools
import logging
from collections.abc import Callable

import ml_collections

from jaxseg.errors import ConfigError
from jaxseg.inference import make_settings
from jaxseg.models import declared_fields
from jaxseg.models.names import choose
from jaxseg.presets import CONCAT, DATASETS, IMAGENET

log = logging.getLogger(__name__)

PRECISIONS = ("float32", "bfloat16", "float16")
SOURCES = ("files", "tfds")
MATCHES = ("order", "name")  # how classes of data are told to be the run's
DTYPES = ("uint8", "uint16", "float32")  # of images once decoded
STATISTICS_SAMPLES = 200  # images that tell mean and std where nobody has computed them
PROBABILITIES = ("class_crop", "flip", "vertical_flip", "rotate", "cutout", "clahe", "mosaic")
# Field -> (how many values it has, 0 for a plain number; what they must satisfy; in words).
NUMBERS: dict[str, tuple[int, Callable[..., bool], str]] = {
    **{field: (0, lambda n: n >= 1, "at least 1") for field in ("steps", "batch_size", "log_every", "keep_checkpoints", "eval.batch_size")},
    **{field: (0, lambda n: n >= 0, "0 (at the end only) or more") for field in ("eval_every", "checkpoint_every")},
    **{field: (0, lambda n: n >= 0, "0 or more") for field in ("seed", "dataset.num_workers", "dataset.check_samples", "loss_scale")},
    **{f"dataset.{field}": (0, lambda p: 0 <= p <= 1, "a probability, 0 to 1") for field in PROBABILITIES},
    "dataset.class_balance": (0, lambda t: 0 <= t <= 1, "a share of the images, 0 (off) to 1"),
    "dataset.rotate_degrees": (0, lambda a: 0 <= a <= 180, "an angle in degrees, 0 to 180"),
    "dataset.channels": (0, lambda n: n >= 1, "at least 1"),
    "optimizer.learning_rate": (0, lambda r: r > 0, "above 0"),
    "optimizer.clip_norm": (0, lambda n: n >= 0, "0 (off) or more"),
    "model.dropout_rate": (0, lambda p: 0 <= p < 1, "a probability, 0 or more and below 1"),
    "dataset.cat_max_ratio": (0, lambda p: 0 < p <= 1, "a share above 0, 1 for no limit"),
    "dataset.crop_size": (2, lambda h, w: h >= 1 and w >= 1, "(height, width) in pixels"),
    "dataset.resize": (2, lambda a, b: a >= 1 and b >= 1 or a == b == 0, "(long, short) in pixels, or (0, 0)"),
    "eval.resize": (2, lambda a, b: a >= 1 and b >= 1 or a == b == 0, "(long, short) in pixels, or (0, 0)"),
    "dataset.ratio_range": (2, lambda low, high: 0 < low <= high, "(lowest, highest), in this order and above 0"),
}


def check_numbers(config: ml_collections.ConfigDict) -> None:
    """ConfigError for a number that cannot be meant, naming its field."""
    for field, (length, holds, words) in NUMBERS.items():
        value = functools.reduce(lambda part, key: part[key], field.split("."), config)
        values = value if length else (value,)
        if len(values) != (length or 1) or not holds(*values):
            raise ConfigError(f"config.{field} is {value}; it must be {words}.")
    data = config.dataset
    for field, other in (("image_mean", "image_std"), ("image_std", "image_mean")):
        if len(data[field]) not in (0, data.channels) or len(data[field]) > len(data[other]) == 0:
            raise ConfigError(
                f"config.dataset.{field} is {data[field]} and {other} is {data[other]}; both must have {data.channels} values, one a channel, or be ()."
            )
    if data.image_std and not min(data.image_std) > 0:
        raise ConfigError(f"config.dataset.image_std is {data.image_std}; it must be above 0.")


def _check_concat(data: ml_collections.ConfigDict) -> None:
    """Check every entry of config.dataset.concat. Raises ConfigError."""
    for key, part in data.concat.items():
        for field in part:
            choose(CONCAT, field, f"field of config.dataset.concat.{key}")
        part = ml_collections.ConfigDict(CONCAT | part.to_dict())
        choose(DATASETS, part.name, f"data set at config.dataset.concat.{key}.name")
        choose(dict.fromkeys(SOURCES), part.source, f"config.dataset.concat.{key}.source")
        if part.repeat < 1:
            raise ConfigError(f"config.dataset.concat.{key}.repeat is {part.repeat}; it must be at least 1.")


def resolve(config: ml_collections.ConfigDict, num_classes: int = 0) -> ml_collections.ConfigDict:
    """Fill in what depends on the data set, check what can be checked before anything is built, and lock; call once, after overrides.

    num_classes: where it is known, of a trained model, the data set is not looked at. Raises ConfigError (or the data room's
    DataError), naming the field.
    """
    data = config.dataset
    choose(DATASETS, data.name, "data set at config.dataset.name")
    choose(dict.fromkeys(("", *DTYPES)), data.dtype, "config.dataset.dtype")
    choose(dict.fromkeys(SOURCES), data.source, "config.dataset.source")
    choose(dict.fromkeys(MATCHES), data.match_classes, "config.dataset.match_classes")
    choose(dict.fromkeys(("", *SOURCES)), config.eval.source, "config.eval.source")
    choose(dict.fromkeys(PRECISIONS), config.precision, "config.precision")
    choose(dict.fromkeys(("whole", "slide")), config.eval.mode, "config.eval.mode")
    check_numbers(config)
    make_settings(config)
    _check_concat(data)
    with config.unlocked():
        for name, fields in declared_fields(config.model).items():
            config.model.heads[name].update(fields)
    if not num_classes:
        from jaxseg.data.class_order import config_spec

        spec = config_spec(data)
        num_classes, data.classes = spec.num_classes, spec.classes
        if config.model.num_classes not in (None, num_classes):
            raise ConfigError(
                f"config.model.num_classes is {config.model.num_classes}, but the data set '{data.name}' has {num_classes} classes: "
                f"choose the variant that ends in _{data.name}, or set --config.model.num_classes={num_classes}."
            )
        _fill_images(data)
        config.model.num_classes = num_classes
        fill_class_weights(config)
    return config.lock()


def _fill_images(data: ml_collections.ConfigDict) -> None:
    """Where config.dataset does not say, the images' dtype is that of the first, and mean and std are those of statistics.json, of
    8-bit RGB ImageNet's (whose weights most runs start from), of others measured on training images.
    """
    unknown = not (len(data.image_mean) and len(data.image_std))
    if data.dtype and not unknown:
        return
    from jaxseg.data import pipeline, records, statistics
    from jaxseg.data.datasets import DataError

    try:
        source = pipeline.open_named(data, data, data.train_split)
        data.dtype = data.dtype or source.header(0).dtype
    except DataError:
        if data.channels != 3:
            raise
        data.dtype = data.dtype or "uint8"  # without training images: a converted model is evaluated or shown photos
    if unknown:
        folder = records.find_prepared(data.name, data.root) if data.source == "tfds" else data.root
        if stored := statistics.read_statistics(folder, data.channels):
            data.image_mean, data.image_std = stored
        elif data.channels == 3 and data.dtype == "uint8":
            data.image_mean, data.image_std = IMAGENET["image_mean"], IMAGENET["image_std"]
        else:
            log.info("measuring mean and std of %d channels of %s (once for all: check_data.py --statistics)", data.channels, data.dtype)
            data.image_mean, data.image_std = statistics.image_statistics(source, STATISTICS_SAMPLES)


def fill_class_weights(config: ml_collections.ConfigDict) -> None:
    """Put numbers in place of every loss's class_weight='auto': histogram.class_weights of the training labels."""
    losses = [loss for loss in config.losses.values() if tuple(loss.get("class_weight", ())) in (("auto",), tuple("auto"))]
    if losses:
        from jaxseg.data import histogram, pipeline

        counts = histogram.count_labels(pipeline.train_source(config.dataset), config.model.num_classes, progress=True)
        weights = tuple(round(weight, 6) for weight in histogram.class_weights(counts.sum(0)[:-1]))
        log.info("class_weight='auto': %s", " ".join(f"{weight:.4g}" for weight in weights))
    for loss in losses:
        loss.class_weight = weights
