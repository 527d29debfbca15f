"""From a ConfigDict to an Experiment: complete it, check it, add the classes of its data set."""

import logging
from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias

from ml_collections import ConfigDict

from jaxseg.config import checks
from jaxseg.config.defaults import AUTO
from jaxseg.config.schema import (
    SCHEMA_VERSION,
    EvalConfig,
    Experiment,
    freeze,
    from_dict,
    thaw,
    to_dict,
)
from jaxseg.errors import ConfigError

log = logging.getLogger(__name__)

READ_WHEN_TRAINED = ("precision", "dataset", "eval")  # parts that evaluation and prediction read
# Fields of config.dataset that belong to the trained model and not to the data it is applied to.
KEPT_WHEN_TRAINED = ("channels", "dtype", "image_mean", "image_std", "classes")


MutableConfig: TypeAlias = ConfigDict  # a complete config that checks may still change
Config: TypeAlias = ConfigDict | Experiment


class Spec(Protocol):
    """The part of a `jaxseg.data.spec.DatasetSpec` that `resolve` reads."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, by class index."""


def copy_config(config: Config) -> ConfigDict:
    """Return an unlocked copy of a config, or the config of an experiment."""
    if isinstance(config, Experiment):
        return ConfigDict(to_dict(config))
    return config.copy_and_resolve_references().unlock()


def resolve(config: Config, spec: Spec) -> Experiment:
    """Make the Experiment of a config and its data set.

    This function is pure: it reads no files and does not change the config. Arguments of modules
    and losses are checked by `models.create_model` and `losses.make_loss`
    (`jaxseg.load_experiment` checks them first).

    Args:
        config: The config, after overrides. Missing fields get their defaults.
        spec: The data set that `config.dataset` names (`data.catalog.load_spec`).

    Returns:
        The experiment, with `model.num_classes` and `dataset.classes` of the data set.
        `data.measure.measure` fills in the dtype, mean and std, and class weights.

    Raises:
        ConfigError: A field is unknown or out of range, or fields contradict each other or the data
            set.
    """
    config = check_fields(copy_config(config))
    data = config.dataset
    count = len(spec.classes)
    if config.model.num_classes not in (None, count):
        other = not config.name.endswith(f"_{data.name}")
        variant = f"choose the variant that ends in _{data.name}, or " if other else ""
        raise ConfigError(
            f"config.model.num_classes is {config.model.num_classes}, but the data set "
            f"'{data.name}' has {count}",
            field="model.num_classes",
            hint=f"{variant}set config.model.num_classes={count}",
        )
    config.model.num_classes = count
    data.classes = spec.classes
    return from_dict(Experiment, config)


def check_fields(config: ConfigDict, schema: Mapping[str, Any] = checks.SCHEMA) -> ConfigDict:
    """Complete, tidy and check a config in place, as far as possible without its data set.

    Args:
        config: An unlocked config.
        schema: Nodes to check against.

    Returns:
        The same config.

    Raises:
        ConfigError: A field is unknown, missing or out of range, or fields contradict each other.
    """
    checks.tidy(checks.complete(config))
    checks.check(config, schema)
    _check_images(config.dataset)
    check_eval(config.eval)
    if "decode" not in config.model.heads:
        hint = "this head computes the model's scores"
        raise ConfigError("config.model.heads has no decode", field="model.heads.decode", hint=hint)
    _check_concat(config.dataset.concat)
    _check_schedule(config)
    _check_multipliers(config.optimizer.multipliers)
    _check_losses(config.losses)
    return config


def override_trained(trained: Experiment, config: Config) -> Experiment:
    """Replace a trained run's data set, `eval` and precision.

    Args:
        trained: The run's experiment.
        config: Provides `dataset`, `eval` and, optionally, `precision`. If its data set is the
            run's and it has no `dataset.root`, the run's root and source are used. Channels, dtype,
            mean, std and classes are always the run's.

    Returns:
        The run's experiment with these parts replaced.

    Raises:
        ConfigError: A field is unknown or out of range.
    """
    merged, other = copy_config(trained), copy_config(config)
    data = other.dataset
    with merged.ignore_type(), other.ignore_type():
        if data.name == trained.dataset.name and not data.get("root", ""):
            data.root, data.source = trained.dataset.root, trained.dataset.source
        for key in KEPT_WHEN_TRAINED:
            data[key] = getattr(trained.dataset, key)
        data.nodata = data.get("nodata", ()) or trained.dataset.nodata
        merged.dataset, merged.eval = data, other.eval
        merged.precision = other.get("precision", trained.precision)
    checks.tidy(checks.complete(merged))
    checks.check(merged, parts=READ_WHEN_TRAINED)
    _check_images(merged.dataset)
    check_eval(merged.eval)
    return from_dict(Experiment, merged)


# --- config.json ----------------------------------------------------------------------------------


def experiment_to_json(experiment: Experiment) -> dict[str, Any]:
    """Return the content of config.json: the experiment's fields and the schema version."""
    return {"schema": SCHEMA_VERSION, **to_dict(experiment)}


def experiment_from_json(
    stored: Mapping[str, Any], schema: Mapping[str, Any] = checks.SCHEMA
) -> Experiment:
    """Return the experiment of a config.json, of this or an earlier version.

    Fields that were added after the file was written get their defaults; files of the first
    edition have no schema version.

    Args:
        stored: The content of config.json.
        schema: Nodes of all known fields.

    Returns:
        The experiment.

    Raises:
        ConfigError: The file has fields that this version does not know.
    """
    values = freeze({key: value for key, value in stored.items() if key != "schema"})
    config = ConfigDict(thaw(values))
    with config.unlocked(), config.ignore_type():
        # Early files of the first edition have no dtype; their images are uint8.
        config.dataset.dtype = config.dataset.get("dtype") or "uint8"
    checks.complete(config)
    unknown = [
        e.field for e in checks.problems(config, schema) if isinstance(e, checks.UnknownField)
    ]
    version = stored.get("schema", 1)
    if unknown or version not in range(1, SCHEMA_VERSION + 1):
        raise ConfigError(
            "has fields that this version of jaxseg does not know: "
            f"{', '.join(unknown) or f'schema {version}'}",
            field=(unknown or ["schema"])[0],
            hint="another version of jaxseg wrote it; use that version",
        )
    return from_dict(Experiment, config)


# --- Fields that depend on each other -------------------------------------------------------------


def _check_images(data: ConfigDict) -> None:
    for field, other in (("image_mean", "image_std"), ("image_std", "image_mean")):
        alone = len(data[field]) > 0 and len(data[other]) == 0
        if len(data[field]) not in (0, data.channels) or alone:
            raise ConfigError(
                f"config.dataset.{field} is {data[field]} and {other} is {data[other]}",
                field=f"dataset.{field}",
                hint=f"both must have {data.channels} values, one per channel, or be ()",
            )


def check_eval(run: ConfigDict | EvalConfig) -> None:
    """Check `config.eval`: the range of every field, and that windows cover every pixel.

    Raises:
        ConfigError: A field is out of range, or the stride is larger than the window.
    """
    values = to_dict(run) if isinstance(run, EvalConfig) else run
    for error in checks.problems(values, checks.SCHEMA["eval"], "eval"):
        raise error
    if run.mode != "slide":
        return
    crop, stride = tuple(run.crop_size), tuple(run.stride)
    if min(crop + stride) < 1:
        raise ConfigError(
            "config.eval.mode 'slide' needs crop_size and stride as (height, width) in pixels, "
            f"not {crop} and {stride}",
            field="eval.stride" if min(crop) > 0 else "eval.crop_size",
        )
    if any(step > side for step, side in zip(stride, crop, strict=True)):
        raise ConfigError(
            f"config.eval.stride {stride} is larger than config.eval.crop_size {crop}: pixels "
            "between the windows would be left out",
            field="eval.stride",
        )


def _check_concat(sets: ConfigDict) -> None:
    for key, part in sets.items():
        if not part.root and part.name != "shapes":
            raise ConfigError(
                f"config.dataset.concat.{key} has no root",
                field=f"dataset.concat.{key}.root",
                hint="set the folder of its data, 'root': DIR",
            )


def _check_schedule(config: ConfigDict) -> None:
    schedule, rate = config.schedule, config.optimizer.learning_rate
    left = config.steps - schedule.warmup_steps
    if left <= 0:
        log.warning(
            "config.schedule.warmup_steps is %d and the run has %d steps: it never reaches its "
            "learning rate",
            schedule.warmup_steps,
            config.steps,
        )
    if schedule.name in ("poly", "cosine") and schedule.end_value > rate:
        raise ConfigError(
            f"config.schedule.end_value is {schedule.end_value:g}, above "
            f"config.optimizer.learning_rate, {rate:g}",
            field="schedule.end_value",
            hint="the rate would rise; set a smaller end_value, for instance 0.0",
        )
    if schedule.name == "step" and not schedule.boundaries:
        hint = "a step schedule needs one or more"
        raise ConfigError(
            "config.schedule.boundaries is ()", field="schedule.boundaries", hint=hint
        )
    if schedule.name == "step" and max(schedule.boundaries) >= max(left, 1):
        log.warning(
            "config.schedule.boundaries is %s and the run has %d steps after the warm-up: it "
            "ends before the last of them",
            tuple(schedule.boundaries),
            max(left, 0),
        )


def _check_multipliers(rules: ConfigDict) -> None:
    for label, rule in rules.items():
        if set(rule) == {"pattern"}:
            raise ConfigError(
                f"config.optimizer.multipliers.{label} has only a pattern",
                field=f"optimizer.multipliers.{label}",
                hint="give it learning_rate, weight_decay or freeze_statistics",
            )


def _check_losses(losses: ConfigDict) -> None:
    if not any(loss.weight for loss in losses.values()):
        hint = "the model would learn nothing; set a weight"
        raise ConfigError(
            "config.losses has no loss with a weight above 0", field="losses", hint=hint
        )


def has_auto_weights(options: Any) -> bool:
    """Whether a loss has class weights 'auto', which are still to be measured."""
    return tuple(options.get("class_weight", ())) == AUTO
