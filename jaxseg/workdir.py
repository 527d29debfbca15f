"""The JSON files of a workdir, and the checks before a run is resumed.

    workdir/config.json  dataset.json  best.json  metrics.json  checkpoints/<step>/

config.json is the experiment; files of the first edition, which have no "schema", are read too.
dataset.json describes the classes of the checkpoints, so it does not change once there are any.
`jaxseg.checkpoint` reads and writes the checkpoints.
"""

import dataclasses
import inspect
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax.core import FrozenDict

from jaxseg.config.checks import complete
from jaxseg.config.resolve import (
    copy_config,
    experiment_from_json,
    experiment_to_json,
    has_auto_weights,
)
from jaxseg.config.schema import Experiment
from jaxseg.errors import CheckpointError, ConfigError, DataError
from jaxseg.files import expand, read_json, write_json
from jaxseg.validation import SCHEMA, complete_modules

# Fields that may change when a run is resumed, since they do not affect the meaning of the state.
FIELDS_ALLOWED_TO_CHANGE = (
    "name",
    "steps",
    "log_every",
    "eval_every",
    "checkpoint_every",
    "keep_checkpoints",
    "init_from",
    "pretrained",
    "eval",
    "dataset.root",
    "dataset.num_workers",
    "dataset.check_samples",
    "dataset.classes",  # checked by restore_classes
    "dataset.match_classes",
)
CONCAT_ROOT = re.compile(r"dataset\.concat\.[^.]+\.root")  # may change too
# Fields of config.dataset that are measured where the config leaves them open.
MEASURED_FIELDS = ("dtype", "image_mean", "image_std")
# Expected warnings of orbax: a run saves more often than it evaluates, and reads checkpoints with a
# read-only manager.
IGNORED_ORBAX_WARNINGS = (
    "did not provide metrics",
    "CheckpointManagerOptions.read_only=True",
    "Given directory is read only",
)


# --- Finding --------------------------------------------------------------------------------------


def find_workdir(path: str | Path) -> tuple[Path, str | None]:
    """Split a path into a workdir and a step.

    Args:
        path: A workdir, or WORKDIR/checkpoints/STEP.

    Returns:
        The absolute path of the workdir, and the name of the step or None.

    Raises:
        CheckpointError: The path is neither.
    """
    path = expand(path).absolute()
    workdir, step = path, None
    if path.parent.name == "checkpoints":
        workdir, step = path.parent.parent, path.name
    if not (workdir / "config.json").is_file():
        raise CheckpointError(
            "it is neither a workdir (no config.json in it) nor WORKDIR/checkpoints/STEP", file=path
        )
    return workdir, step


def saved_steps(workdir: str | Path) -> list[int]:
    """Return the steps of all complete checkpoints in a workdir, in any order."""
    folders = (Path(workdir) / "checkpoints").glob("*")
    return [int(folder.name) for folder in folders if folder.name.isdigit()]


# --- Reading and writing --------------------------------------------------------------------------


def write_experiment(
    workdir: str | Path, experiment: Experiment, dataset: Mapping[str, Any] | str
) -> None:
    """Write config.json, and also dataset.json unless there are checkpoints, which it describes.

    Args:
        workdir: The workdir; created if it does not exist.
        experiment: The resolved and measured experiment.
        dataset: Content of dataset.json (`DatasetSpec.to_json`), as a dict or JSON.
    """
    write_json(Path(workdir) / "config.json", _plain(experiment_to_json(experiment)))
    file = Path(workdir) / "dataset.json"
    if not (file.is_file() and saved_steps(workdir)):
        write_json(file, json.loads(dataset) if isinstance(dataset, str) else dict(dataset))


def read_experiment(workdir: str | Path) -> Experiment:
    """Read the experiment of a workdir; fields that were added later get their defaults.

    Raises:
        CheckpointError: config.json is damaged, or has fields that this version does not know.
    """
    file = Path(workdir) / "config.json"
    stored = _read_dict(file)
    try:
        return experiment_from_json(stored, SCHEMA)
    except ConfigError as error:
        raise CheckpointError(
            error.problem, file=file, field=error.field, hint=error.hint
        ) from error


def read_classes(workdir: str | Path) -> tuple[str, ...]:
    """Return the class names in a workdir's dataset.json, in order; () if there are none.

    Raises:
        CheckpointError: dataset.json is damaged.
    """
    file = Path(workdir) / "dataset.json"
    if not file.is_file():
        return ()
    return tuple(_read_dict(file).get("classes", ()))


def load_dataset_metadata(path: str | Path) -> dict[str, Any]:
    """Read dataset.json (classes, palette, ...) of a workdir or one of its steps.

    Raises:
        CheckpointError: There is none, or it is damaged.
    """
    path = expand(path).absolute()
    for folder in (path, *path.parents[:2]):
        file = folder / "dataset.json"
        if file.is_file():
            return _read_dict(file)
    hint = "give the workdir of a run, or one of its steps"
    raise CheckpointError("there is no dataset.json in it or its parents", file=path, hint=hint)


def read_training(workdir: str | Path) -> dict[str, Any] | None:
    """Return the training summary in metrics.json, None if there is none.

    Raises:
        CheckpointError: metrics.json is damaged.
    """
    file = Path(workdir) / "metrics.json"
    return _read_dict(file).get("training") if file.is_file() else None


def _read_dict(file: Path) -> dict[str, Any]:
    """Read a JSON object of a workdir; raise CheckpointError if the file is damaged."""
    try:
        content = read_json(file)
    except DataError as error:
        hint = "restore it from a copy of the run"
        raise CheckpointError(error.problem, file=file, hint=hint) from None
    if not isinstance(content, dict):
        raise CheckpointError("does not hold a JSON object", file=file)
    return content


# --- Resuming -------------------------------------------------------------------------------------


def with_classes(workdir: str | Path, experiment: Experiment) -> Experiment:
    """Return a run's experiment with the classes that its model was trained with."""
    classes = read_classes(workdir) or tuple(experiment.dataset.classes)
    return _replace_dataset(experiment, classes=classes)


def restore_classes(workdir: str | Path, experiment: Experiment) -> Experiment:
    """When resuming, return `experiment` with the classes of the run, in the run's order.

    `data.catalog.load_spec` then refuses data in another order, or maps it by name.

    Args:
        workdir: Workdir of the run. For a new run, the experiment is returned unchanged.
        experiment: The experiment, with the classes of the data set or of the config.

    Returns:
        The experiment with the classes of the run.

    Raises:
        CheckpointError: The experiment has other classes, or has them in another order and
            `dataset.match_classes` is not 'name'.
    """
    classes = read_classes(workdir) if saved_steps(workdir) else ()
    ours = tuple(experiment.dataset.classes)
    if not classes or ours == classes:
        return experiment
    same_names = sorted(ours) == sorted(classes)
    if ours and not (same_names and experiment.dataset.match_classes == "name"):
        hint = "give the data set of that run, or choose another workdir"
        if same_names:
            hint = (
                "set config.dataset.match_classes to 'name' to map labels to the run's order, or "
                "choose another workdir"
            )
        raise CheckpointError(
            f"holds a run with the classes {classes}, but config.dataset.classes is {ours}",
            file=workdir,
            field="dataset.classes",
            hint=hint,
        )
    return _replace_dataset(experiment, classes=classes)


def restore_measured_fields(workdir: str | Path, experiment: Experiment) -> Experiment:
    """When resuming, return `experiment` with the measured fields of the run.

    Dtype, mean and std, and class weights keep the values measured at the start of the run, even if
    the data has changed since. Fields that the experiment sets itself do not change.

    Args:
        workdir: Workdir of the run. For a new run, the experiment is returned unchanged.
        experiment: The experiment.

    Returns:
        The experiment with the measured fields.

    Raises:
        CheckpointError: config.json is damaged.
    """
    if not (Path(workdir) / "config.json").is_file() or not saved_steps(workdir):
        return experiment
    stored = read_experiment(workdir)
    measured = {}
    if experiment.dataset.channels == stored.dataset.channels:
        for key in MEASURED_FIELDS:
            if not getattr(experiment.dataset, key):
                measured[key] = getattr(stored.dataset, key)
    losses = {}
    for key, loss in experiment.losses.items():
        known = stored.losses[key].options if key in stored.losses else {}
        if has_auto_weights(loss.options) and "class_weight" in known:
            options = {**loss.options, "class_weight": known["class_weight"]}
            loss = dataclasses.replace(loss, options=FrozenDict(options))
        losses[key] = loss
    restored = _replace_dataset(experiment, **measured)
    return dataclasses.replace(restored, losses=FrozenDict(losses))


def check_experiment(workdir: str | Path, experiment: Experiment) -> None:
    """Check that a workdir has no checkpoints of another experiment or of later steps.

    FIELDS_ALLOWED_TO_CHANGE may differ. Workdirs without checkpoints are not compared.

    Args:
        workdir: The workdir.
        experiment: The experiment to train in it.

    Raises:
        CheckpointError: The experiment differs, or has fewer steps than the checkpoints; the error
            lists the differences.
    """
    steps = saved_steps(workdir)
    if not steps or not (Path(workdir) / "config.json").is_file():
        return
    if max(steps) > experiment.steps:
        raise CheckpointError(
            f"{workdir} is at step {max(steps)}, but config.steps is only {experiment.steps}",
            field="steps",
            hint="choose another workdir, or more steps",
        )
    old, new = (_flat(_with_defaults(each)) for each in (read_experiment(workdir), experiment))
    differ = [
        key
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not _may_change(key)
    ]
    if differ:
        lines = [
            f"  config.{key}: {old.get(key, 'absent')} there, {new.get(key, 'absent')} now"
            for key in differ
        ]
        raise CheckpointError(
            "\n".join(
                [
                    f"{workdir} holds a run with another config:",
                    *lines,
                    "Choose another workdir, or give the old values.",
                ]
            ),
            field=differ[0],
        )


def _with_defaults(experiment: Experiment) -> dict[str, Any]:
    """Return an experiment as JSON values, with the defaults of all arguments."""
    return _plain(complete_modules(complete(copy_config(experiment))).to_dict())


def _may_change(key: str) -> bool:
    prefixes = tuple(f"{field}." for field in FIELDS_ALLOWED_TO_CHANGE)
    if key in FIELDS_ALLOWED_TO_CHANGE or key.startswith(prefixes):
        return True
    return CONCAT_ROOT.fullmatch(key) is not None


def _replace_dataset(experiment: Experiment, **changes: Any) -> Experiment:
    return dataclasses.replace(
        experiment, dataset=dataclasses.replace(experiment.dataset, **changes)
    )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        inner = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return flat


def _plain(value: Any) -> Any:
    """Return a value after a round trip through JSON, in which classes become their paths."""
    return json.loads(json.dumps(value, default=_describe))


def _describe(value: Any) -> Any:
    if hasattr(value, "tolist"):  # a NumPy number
        return value.tolist()
    return f"{value.__module__}.{value.__qualname__}" if inspect.isclass(value) else repr(value)
