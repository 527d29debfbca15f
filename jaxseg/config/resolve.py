"""A config's last step: what depends on the data set is filled in, what cannot be meant is refused, and it is locked."""

import logging

from ml_collections import ConfigDict

from jaxseg import losses
from jaxseg.config.defaults import AUTO, CROSS_ENTROPY, IMAGENET
from jaxseg.config.fields import check, complete, tidy
from jaxseg.errors import ConfigError
from jaxseg.inference.predictor import make_settings
from jaxseg.models import declared_fields

log = logging.getLogger(__name__)

STATISTICS_SAMPLES = 200  # images that tell mean and std where nobody has computed them
OF_TRAINED = ("precision", "dataset", "eval")  # what is read of the config of a trained model


def resolve(config: ConfigDict, num_classes: int = 0) -> ConfigDict:
    """Fill in what depends on the data set, check what can be checked before anything is built, and lock.

    Call it once, after overrides.

    Args:
        config: changed in place.
        num_classes: where it is known, of a trained model, the data set is not looked at, and of the config only what
            evaluation and prediction read.

    Raises:
        ConfigError: a field that is unknown, or whose value cannot be meant.
        DataError: the data set cannot be read.
    """
    config = check_alone(config, trained=bool(num_classes))
    data = config.dataset
    with config.unlocked():
        for name, fields in declared_fields(config.model).items():
            config.model.heads[name].update(fields)
    if not num_classes:
        from jaxseg.data.class_order import config_spec

        spec = config_spec(data)
        num_classes, data.classes = spec.num_classes, spec.classes
        if config.model.num_classes not in (None, num_classes):
            other = not config.name.endswith(f"_{data.name}")
            variant = f"choose the variant that ends in _{data.name}, or " if other else ""
            raise ConfigError(
                f"config.model.num_classes is {config.model.num_classes}, but the data set '{data.name}' has {num_classes}",
                field="model.num_classes",
                hint=f"{variant}set --config.model.num_classes={num_classes}",
            )
        config.model.num_classes = num_classes
        losses.check_options(_without_auto(config))
        _fill_images(data)
        fill_class_weights(config)
    return config.lock()


def check_alone(config: ConfigDict, trained: bool = False) -> ConfigDict:
    """`config`, complete, tidy and checked as far as it goes without the data set; see `resolve`."""
    tidy(complete(config))
    if not trained:
        _fit_losses(config)
    check(config, OF_TRAINED if trained else ())
    _check_images(config.dataset)
    make_settings(config)
    if not trained:
        if "decode" not in config.model.heads:
            hint = "its scores are the model's"
            raise ConfigError(
                "config.model.heads has no decode", field="model.heads.decode", hint=hint
            )
        _check_concat(config.dataset.concat)
        _check_schedule(config)
        _check_multipliers(config.optimizer.multipliers)
        _check_losses(config)
    return config


# --- Fields that depend on each other ---------------------------------------------------------------------------------


def _check_images(data: ConfigDict) -> None:
    """ConfigError unless mean and std are of the images' channels, or both left to the data."""
    for field, other in (("image_mean", "image_std"), ("image_std", "image_mean")):
        if len(data[field]) not in (0, data.channels) or len(data[field]) > len(data[other]) == 0:
            raise ConfigError(
                f"config.dataset.{field} is {data[field]} and {other} is {data[other]}", field=f"dataset.{field}",
                hint=f"both must have {data.channels} values, one a channel, or be ()",
            )  # fmt: skip


def _check_concat(entries: ConfigDict) -> None:
    """ConfigError for an entry that does not say where its data lie."""
    for key, part in entries.items():
        if not part.root and part.name != "shapes":
            raise ConfigError(
                f"config.dataset.concat.{key} has no root", field=f"dataset.concat.{key}.root",
                hint="give the folder of its data, 'root': DIR",
            )  # fmt: skip


def _check_schedule(config: ConfigDict) -> None:
    """ConfigError for a schedule that cannot be meant; a warning where a short run, of a trial for instance, ends before it."""
    schedule, rate, left = (
        config.schedule,
        config.optimizer.learning_rate,
        config.steps - config.schedule.warmup_steps,
    )
    if left <= 0:
        log.warning(
            "config.schedule.warmup_steps is %d and the run has %d steps: it never reaches its learning rate",
            schedule.warmup_steps, config.steps,
        )  # fmt: skip
    if schedule.name in ("poly", "cosine") and schedule.end_value > rate:
        raise ConfigError(
            f"config.schedule.end_value is {schedule.end_value:g}, above config.optimizer.learning_rate, {rate:g}",
            field="schedule.end_value", hint="the rate would rise; set a smaller end_value, for instance 0.0",
        )  # fmt: skip
    if schedule.name == "step" and not schedule.boundaries:
        raise ConfigError(
            "config.schedule.boundaries is ()",
            field="schedule.boundaries",
            hint="a step schedule needs one or more",
        )
    if schedule.name == "step" and max(schedule.boundaries) >= max(left, 1):
        log.warning(
            "config.schedule.boundaries is %s and the run has %d steps after the warm-up: it ends before the last of them",
            tuple(schedule.boundaries), max(left, 0),
        )  # fmt: skip


def _check_multipliers(rules: ConfigDict) -> None:
    """ConfigError for a rule that changes nothing."""
    for label, rule in rules.items():
        if set(rule) == {"pattern"}:
            raise ConfigError(
                f"config.optimizer.multipliers.{label} has only a pattern", field=f"optimizer.multipliers.{label}",
                hint="give it learning_rate, weight_decay or freeze_statistics",
            )  # fmt: skip


# --- Losses -----------------------------------------------------------------------------------------------------------


def _fit_losses(config: ConfigDict) -> None:
    """Remove the fields of a cross entropy, with which entries of config.losses begin, where another loss was chosen."""
    for key, loss in config.losses.items() if isinstance(config.losses, ConfigDict) else ():
        if not isinstance(loss, ConfigDict) or loss.get("name") not in losses.LOSSES:
            continue  # which `check` will tell
        extra = [
            field
            for field in CROSS_ENTROPY
            if field in loss and field not in losses.options_of(loss.name)
        ]
        with config.unlocked():
            for field in extra:
                del loss[field]
        if extra:
            missing = ", ".join(extra)
            log.info(
                "config.losses.%s: %s has no %s; what the config says of them is left out",
                key,
                loss.name,
                missing,
            )


def _check_losses(config: ConfigDict) -> None:
    """ConfigError for losses from which nothing is learnt, or that are none of the scores of a head."""
    if not any(loss.weight for loss in config.losses.values()):
        hint = "nothing would be learnt; give one a weight"
        raise ConfigError(
            "config.losses has no loss of a weight above 0", field="losses", hint=hint
        )
    for key, loss in config.losses.items():
        if loss.name in losses.RANKS and (loss.target or key) in config.model.heads:
            raise ConfigError(
                f"config.losses.{key}: {loss.name} is no loss of a head's scores", field=f"losses.{key}.name",
                hint="choose another loss, or as its target an output that it is made for",
            )  # fmt: skip
    losses.check_options(_without_auto(config))


def _without_auto(config: ConfigDict) -> ConfigDict:
    """A copy whose class weights that are still to be measured are ()."""
    config = config.copy_and_resolve_references()
    for loss in config.losses.values():
        if loss.get("class_weight") == AUTO:
            loss.class_weight = ()
    return config


def fill_class_weights(config: ConfigDict) -> None:
    """Put numbers in place of every loss's class_weight='auto': histogram.class_weights of the training labels."""
    automatic = [loss for loss in config.losses.values() if loss.get("class_weight") == AUTO]
    if automatic:
        from jaxseg.data import label_counts as histogram
        from jaxseg.data import pipeline

        counts = histogram.count_labels(
            pipeline.train_source(config.dataset), config.model.num_classes, progress=True
        )
        weights = tuple(round(weight, 6) for weight in histogram.class_weights(counts.sum(0)[:-1]))
        log.info("class_weight='auto': %s", " ".join(f"{weight:.4g}" for weight in weights))
    for loss in automatic:
        loss.class_weight = weights


# --- Images -----------------------------------------------------------------------------------------------------------


def _fill_images(data: ConfigDict) -> None:
    """Where config.dataset does not say, the images' dtype is that of the first, and mean and std are those of statistics.json, of
    8-bit RGB ImageNet's (whose weights most runs start from), of others measured on training images.
    """
    unknown = not (len(data.image_mean) and len(data.image_std))
    if data.dtype and not unknown:
        return
    from jaxseg.data import pipeline
    from jaxseg.data.sources import records
    from jaxseg.data.validate import statistics
    from jaxseg.errors import DataError

    try:
        source = pipeline.open_named(data, data, data.train_split)
        data.dtype = data.dtype or source.header(0).dtype
    except DataError:
        if data.channels != 3:
            raise
        data.dtype = (
            data.dtype or "uint8"
        )  # without training images: a converted model is evaluated or shown photos
    if unknown:
        folder = records.find_prepared(data.name, data.root) if data.source == "tfds" else data.root
        if stored := statistics.read_statistics(folder, data.channels):
            data.image_mean, data.image_std = stored
        elif data.channels == 3 and data.dtype == "uint8":
            data.image_mean, data.image_std = IMAGENET["image_mean"], IMAGENET["image_std"]
        else:
            log.info(
                "measuring mean and std of %d channels of %s (once for all: check_data.py --statistics)",
                data.channels,
                data.dtype,
            )
            data.image_mean, data.image_std = statistics.image_statistics(
                source, STATISTICS_SAMPLES
            )
