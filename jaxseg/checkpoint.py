"""Checkpoints and the workdir: what a run leaves behind, written so that a kill at any moment loses only new steps.

    workdir/config.json  dataset.json  best.json  checkpoints/<step>/{variables, optimizer, position, metrics}

`variables` are the model's; a checkpoint made by conversion has nothing else. Orbax writes a step under a temporary
name and renames it when it is complete. Arrays are saved from host memory, so that any number of devices can read
them.
"""

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging as absl_logging
from ml_collections import ConfigDict
from orbax.checkpoint.checkpoint_managers import preservation_policy

from jaxseg.config import fields
from jaxseg.config.defaults import AUTO
from jaxseg.errors import CheckpointError, NonFiniteError
from jaxseg.files import expand
from jaxseg.files import write_json as write_json
from jaxseg.training.state import TrainState, to_host
from jaxseg.weights.finite import check_finite, not_finite

# What may change when a run continues: none of it alters what the state means.
FREE_FIELDS = (
    "name", "steps", "log_every", "eval_every", "checkpoint_every", "keep_checkpoints", "init_from", "pretrained", "eval",
    "dataset.root", "dataset.num_workers", "dataset.check_samples",
    "dataset.classes", "dataset.match_classes",  # recall_classes looks after them
)  # fmt: skip


def open_manager(
    workdir: str | Path, *, keep: int = 2, read_only: bool = False
) -> ocp.CheckpointManager:
    """The orbax manager of a workdir: keeps the last `keep` steps and the best by mIoU, drops leftovers of a kill."""
    absl_logging.get_absl_logger().addFilter(_is_news)
    policy = preservation_policy.AnyPreservationPolicy([
        preservation_policy.LatestN(max(keep, 1)),
        preservation_policy.BestN(get_metric_fn=_miou, n=1, keep_checkpoints_without_metrics=False),
    ])  # fmt: skip
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policy,
        best_fn=_miou,
        best_mode="max",
        cleanup_tmp_directories=not read_only,
        read_only=read_only,
    )
    # Registered by hand: a reader (and a converted checkpoint) need not have every item.
    handlers = ocp.DefaultCheckpointHandlerRegistry()
    for item in ("variables", "optimizer"):
        handlers.add(item, ocp.args.StandardSave)
        handlers.add(item, ocp.args.StandardRestore)
    handlers.add("position", ocp.args.JsonSave)
    handlers.add("position", ocp.args.JsonRestore)
    return ocp.CheckpointManager(
        Path(workdir).absolute() / "checkpoints", options=options, handler_registry=handlers
    )


# What orbax warns about although it is meant: saving more often than evaluating, and reading with a read-only manager.
ROUTINE = (
    "did not provide metrics",
    "CheckpointManagerOptions.read_only=True",
    "Given directory is read only",
)


def _is_news(record: logging.LogRecord) -> bool:
    return not any(phrase in str(record.msg) for phrase in ROUTINE)


def _miou(metrics: Mapping[str, float]) -> float:
    return float(metrics["mIoU"])


def save(
    manager: ocp.CheckpointManager,
    state: TrainState,
    position: Mapping[str, Any],
    miou: float | None = None,
) -> None:
    """Save `state` (a replicated one) and `position` (JSON) as step `state.step`; returns while files are being written.

    Every process calls it. `miou` makes the step a candidate for the best. Raises NonFiniteError instead of saving
    variables that are not numbers.
    """
    write_best(
        manager
    )  # of what is complete by now: saving waits for the previous save in any case
    host = to_host(state)
    if broken := not_finite(host.variables):
        raise NonFiniteError(
            f"step {int(host.step)}: {len(broken)} variables are not finite ({', '.join(broken[:3])})",
            hint="not saved",
        )
    # Variables apart from the rest, so that evaluation neither reads nor needs the optimiser's state.
    rest = {
        "step": host.step,
        "opt_state": host.opt_state,
        "loss_scale": host.loss_scale,
        "rng": host.rng,
    }
    manager.save(
        int(host.step),
        args=ocp.args.Composite(
            variables=ocp.args.StandardSave(host.variables),
            optimizer=ocp.args.StandardSave(rest),
            position=ocp.args.JsonSave(dict(position)),
        ),
        metrics=None if miou is None else {"mIoU": float(miou)},
        force=True,
    )


def restore(
    manager: ocp.CheckpointManager, state: TrainState
) -> tuple[TrainState, dict[str, Any]] | None:
    """(state on the host, position) of the latest step, `state` being the template; None if there is none yet."""
    step = manager.latest_step()
    if step is None:
        return None
    host = to_host(state)
    rest = {
        "step": host.step,
        "opt_state": host.opt_state,
        "loss_scale": host.loss_scale,
        "rng": host.rng,
    }
    try:
        found = manager.restore(
            step,
            args=ocp.args.Composite(
                variables=ocp.args.StandardRestore(host.variables),
                optimizer=ocp.args.StandardRestore(rest),
                position=ocp.args.JsonRestore(),
            ),
        )
    except (ValueError, KeyError, FileNotFoundError) as error:
        raise CheckpointError(
            f"it does not hold a state of this model and optimiser ({str(error).splitlines()[0]})", file=manager.directory / str(step),
            hint="to start from its weights only, set config.init_from to it and choose another workdir",
        ) from error  # fmt: skip
    variables = dict(found["variables"])
    params = variables.pop("params")
    return TrainState(params=params, model_state=variables, **found["optimizer"]), found["position"]


def find_workdir(path: str | Path) -> tuple[Path, str | None]:
    """(workdir, step) of a workdir, whose step is None, or of WORKDIR/checkpoints/STEP; CheckpointError if it is neither."""
    path = expand(path).absolute()
    workdir, step = (
        (path.parent.parent, path.name) if path.parent.name == "checkpoints" else (path, None)
    )
    if not (workdir / "config.json").is_file():
        raise CheckpointError(
            "it is neither a workdir (no config.json in it) nor WORKDIR/checkpoints/STEP", file=path
        )
    return workdir, step


def _choose_step(manager: ocp.CheckpointManager, path: str | Path) -> int:
    """The step that `path` names, or a workdir's best, else its latest."""
    (workdir, step), steps = find_workdir(path), sorted(manager.all_steps())
    if not steps:
        raise CheckpointError(
            "it holds no checkpoint yet", file=workdir, hint="train first or give another workdir"
        )
    if step is not None and step not in map(str, steps):
        raise CheckpointError(
            "it is not a complete checkpoint",
            file=path,
            hint=f"complete ones here: {', '.join(map(str, steps))}",
        )
    return (
        int(step)
        if step is not None
        else (steps[-1] if manager.best_step() is None else manager.best_step())
    )


def find_step(path: str | Path) -> int:
    """The step whose variables `load_variables` gives."""
    with open_manager(find_workdir(path)[0], read_only=True) as manager:
        return _choose_step(manager, path)


def load_variables(path: str | Path) -> tuple[ConfigDict, dict[str, Any]]:
    """(config, variables as NumPy arrays) of a workdir (its best step, else its latest) or of one step's folder.

    Raises:
        CheckpointError: there is no complete checkpoint.
        WeightsError: a variable holds a NaN or an infinity.
    """
    workdir, _ = find_workdir(path)
    with open_manager(workdir, read_only=True) as manager:
        step = _choose_step(manager, path)
        try:
            found = manager.restore(
                step, args=ocp.args.Composite(variables=ocp.args.StandardRestore())
            )
        except (ValueError, KeyError, OSError) as error:
            raise CheckpointError(
                f"cannot be read ({str(error).splitlines()[0]})", file=manager.directory / str(step),
                hint="give another step, or copy the checkpoint again",
            ) from error  # fmt: skip
    check_finite(found["variables"], str(path))
    return with_classes(workdir, read_config(workdir)), found["variables"]


def save_variables(
    workdir: str | Path, config: ConfigDict, variables: Mapping, dataset: Mapping | str
) -> None:
    """Write a workdir that holds weights only, as step 0: what conversion makes. `dataset`: DatasetSpec.to_json()."""
    write_config(workdir, config, dataset)
    with open_manager(workdir) as manager:
        manager.save(
            0,
            args=ocp.args.Composite(variables=ocp.args.StandardSave(to_host(dict(variables)))),
            force=True,
        )
        manager.wait_until_finished()


def best(manager: ocp.CheckpointManager) -> dict[str, Any] | None:
    """{'step', 'mIoU'} of the best step that is completely written, None before the first evaluation."""
    step = manager.best_step()
    return None if step is None else {"step": int(step), "mIoU": _miou(manager.metrics(step))}


def write_best(manager: ocp.CheckpointManager) -> None:
    """Wait for saves under way and bring best.json up to date (process 0 writes)."""
    manager.wait_until_finished()
    found = best(manager)
    if found and jax.process_index() == 0:
        write_json(Path(manager.directory).parent / "best.json", found)


def write_config(workdir: str | Path, config: ConfigDict, dataset: Mapping | str) -> None:
    """Write config.json, and dataset.json unless checkpoints lie there: it says what their classes mean, and stays."""
    write_json(
        Path(workdir) / "config.json", _plain(config), strict=False
    )  # dataset.nodata may be NaN
    file = Path(workdir) / "dataset.json"
    if not (file.is_file() and _saved_steps(workdir)):
        write_json(file, json.loads(dataset) if isinstance(dataset, str) else dict(dataset))


def read_classes(workdir: str | Path) -> tuple[str, ...]:
    """The classes that a workdir's dataset.json lists, in their order; () if it does not say."""
    file = Path(workdir) / "dataset.json"
    try:
        return (
            tuple(json.loads(file.read_text(encoding="utf-8")).get("classes", ()))
            if file.is_file()
            else ()
        )
    except ValueError as error:
        raise CheckpointError(
            f"is damaged ({error})", file=file, hint="take it from a copy of the run"
        ) from None


def with_classes(workdir: str | Path, config: ConfigDict) -> ConfigDict:
    """A locked copy of a run's config whose dataset.classes are those that the workdir's model was trained with."""
    config = config.copy_and_resolve_references().unlock()
    config.dataset.classes = read_classes(workdir) or tuple(config.dataset.get("classes", ()))
    return config.lock()


def recall_classes(workdir: str | Path, config: ConfigDict) -> ConfigDict:
    """`config`, or for a run to be continued a copy whose dataset.classes are the run's, so that data with others is noticed.

    Raises:
        CheckpointError: the config itself asks for other classes.
    """
    classes = read_classes(workdir) if _saved_steps(workdir) else ()
    if not classes or tuple(config.dataset.classes) == classes:
        return config
    if config.dataset.classes:
        raise CheckpointError(
            f"holds a run with the classes {classes}, and config.dataset.classes is {tuple(config.dataset.classes)}",
            file=workdir, field="dataset.classes", hint="leave it out, or choose another --workdir",
        )  # fmt: skip
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.dataset.classes = classes
    return config


def read_config(workdir: str | Path) -> ConfigDict:
    """The resolved config of a workdir, locked.

    Lists come back as the tuples they were, and fields that are newer than the run as their defaults.

    Raises:
        CheckpointError: config.json is damaged, or has fields that this version does not know.
    """
    file = Path(workdir) / "config.json"
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot be read ({error})", file=file) from None
    if not isinstance(stored, dict):
        raise CheckpointError("does not hold a config", file=file)
    config = ConfigDict(_tuples(stored))
    # Once there was no other dtype than uint8, and "" is not resolved.
    dtype = stored.get("dataset", {}).get("dtype") or "uint8"
    with config.unlocked():
        fields.complete(config).dataset.dtype = dtype
    unknown = [
        error.field for error in fields.problems(config) if isinstance(error, fields.UnknownField)
    ]
    if unknown:
        raise CheckpointError(
            f"has fields that this version of jaxseg does not know: {', '.join(unknown)}", file=file, field=unknown[0],
            hint="a newer version wrote it, or an older one that had them; use that version",
        )  # fmt: skip
    return config.lock()


def read_training(workdir: str | Path) -> dict[str, Any] | None:
    """What metrics.json says about training, None if there is no such file or it says nothing."""
    file = Path(workdir) / "metrics.json"
    return json.loads(file.read_text()).get("training") if file.is_file() else None


def recall_measured(workdir: str | Path, config: ConfigDict) -> ConfigDict:
    """`config`, or for a run to be continued a copy in which what a start measures is what the run's first start measured.

    These are statistics, dtype and class weights that the config leaves to the data; the data may have been mended since, or
    statistics.json written.
    """
    if not (Path(workdir) / "config.json").is_file() or not _saved_steps(workdir):
        return config
    stored, config = read_config(workdir), fields.tidy(config.copy_and_resolve_references())
    with config.unlocked():
        for key in ("dtype", "image_mean", "image_std"):
            if (
                not config.dataset.get(key)
                and config.dataset.get("channels", 3) == stored.dataset.channels
            ):
                config.dataset[key] = stored.dataset[key]
        for key, loss in config.get("losses", {}).items():
            known = stored.losses.get(key, {})
            if (
                isinstance(loss, ConfigDict)
                and loss.get("class_weight") == AUTO
                and "class_weight" in known
            ):
                loss.class_weight = known.class_weight
    return config


def _saved_steps(workdir: str | Path) -> list[int]:
    return [
        int(folder.name)
        for folder in (Path(workdir) / "checkpoints").glob("*")
        if folder.name.isdigit()
    ]


def check_config(workdir: str | Path, config: ConfigDict) -> None:
    """Raise CheckpointError if the workdir holds checkpoints of another config (fields in FREE_FIELDS may differ), or of later steps."""
    steps = _saved_steps(workdir)
    if not steps or not (Path(workdir) / "config.json").is_file():
        return  # a start that failed before its first save binds nothing
    if max(steps) > config.steps:
        raise CheckpointError(
            f"{workdir} is at step {max(steps)}; config.steps={config.steps} is below it", field="steps",
            hint="choose another --workdir, or more steps",
        )  # fmt: skip
    new = fields.complete(config.copy_and_resolve_references().unlock())
    old, new = (
        _flat(_plain(fields.complete_modules(each))) for each in (read_config(workdir), new)
    )
    differ = [
        key
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not _is_free(key)
    ]
    if differ:
        lines = "\n".join(
            f"  config.{key}: {old.get(key, 'absent')} there, {new.get(key, 'absent')} now"
            for key in differ
        )
        problem = f"{workdir} holds a run with another config:\n{lines}\nChoose another --workdir, or give the old values."
        raise CheckpointError(problem, field=differ[0])


def _is_free(key: str) -> bool:
    return any(key == field or key.startswith(field + ".") for field in FREE_FIELDS) or bool(
        re.fullmatch(r"dataset\.concat\.[^.]+\.root", key)
    )


def _plain(config: ConfigDict) -> dict:
    return json.loads(config.to_json_best_effort())


def _flat(tree: Mapping, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        flat |= (
            _flat(value, f"{prefix}{key}.")
            if isinstance(value, dict)
            else {f"{prefix}{key}": value}
        )
    return flat


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
