"""Checkpoints, written so that a run killed at any moment loses only its latest steps.

    workdir/checkpoints/<step>/{variables, optimizer, position, metrics}   best.json

`variables` are the model's; a converted checkpoint has only these. Orbax writes a step under a
temporary name and renames it when it is complete. Arrays are saved from host memory, so that they
can be restored on any number of devices. `jaxseg.workdir` reads and writes the JSON files next to
checkpoints/; its functions can also be imported from here.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from jaxseg.config.schema import Experiment
from jaxseg.errors import CheckpointError, NonFiniteError
from jaxseg.files import write_json
from jaxseg.replication import to_host
from jaxseg.weights.finite import check_finite, not_finite
from jaxseg.workdir import (
    FIELDS_ALLOWED_TO_CHANGE,
    IGNORED_ORBAX_WARNINGS,
    check_experiment,
    find_workdir,
    load_dataset_metadata,
    read_classes,
    read_experiment,
    read_training,
    restore_classes,
    restore_measured_fields,
    with_classes,
    write_experiment,
)

__all__ = [
    "FIELDS_ALLOWED_TO_CHANGE",
    "IGNORED_ORBAX_WARNINGS",
    "best",
    "check_experiment",
    "find_step",
    "find_workdir",
    "load_dataset_metadata",
    "load_variables",
    "open_manager",
    "read_classes",
    "read_experiment",
    "read_training",
    "restore",
    "restore_classes",
    "restore_measured_fields",
    "save",
    "save_variables",
    "with_classes",
    "write_best",
    "write_experiment",
]


def open_manager(
    workdir: str | Path, *, keep: int = 2, read_only: bool = False
) -> ocp.CheckpointManager:
    """Open the orbax manager of a workdir.

    Args:
        workdir: The workdir; created if it does not exist.
        keep: Number of latest steps to keep, in addition to the best by mIoU.
        read_only: Whether to leave the folder as it is, including leftovers of a killed save.

    Returns:
        The manager, which is a context manager.
    """
    policy = preservation_policy.AnyPreservationPolicy(
        [
            preservation_policy.LatestN(max(keep, 1)),
            preservation_policy.BestN(
                get_metric_fn=_miou, n=1, keep_checkpoints_without_metrics=False
            ),
        ]
    )
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policy,
        best_fn=_miou,
        best_mode="max",
        cleanup_tmp_directories=not read_only,
        read_only=read_only,
    )
    # Registered explicitly, since converted checkpoints do not have every item.
    handlers = ocp.DefaultCheckpointHandlerRegistry()
    for item in ("variables", "optimizer"):
        handlers.add(item, ocp.args.StandardSave)
        handlers.add(item, ocp.args.StandardRestore)
    handlers.add("position", ocp.args.JsonSave)
    handlers.add("position", ocp.args.JsonRestore)
    return ocp.CheckpointManager(
        Path(workdir).absolute() / "checkpoints", options=options, handler_registry=handlers
    )


def _miou(metrics: Mapping[str, float]) -> float:
    return float(metrics["mIoU"])


def save(
    manager: ocp.CheckpointManager,
    step: int,
    variables: Mapping[str, Any],
    optimizer_items: Mapping[str, Any],
    position: Mapping[str, Any],
    miou: float | None = None,
) -> None:
    """Save a training state in the background. Every process must call this function.

    Args:
        manager: Manager of the run's workdir.
        step: Number of the step.
        variables: The model's variables, replicated or on the host.
        optimizer_items: The rest of the training state, replicated or on the host.
        position: Position of the data and the clock (JSON values).
        miou: Validation mIoU of the step; None if it was not evaluated.

    Raises:
        NonFiniteError: A variable holds a NaN or an infinity; nothing is saved.
    """
    write_best(manager)  # which waits for the previous save, as `manager.save` would in any case
    variables = to_host(dict(variables))
    if broken := not_finite(variables):
        raise NonFiniteError(
            f"step {step}: {len(broken)} variables are not finite ({', '.join(broken[:3])})",
            hint="not saved",
        )
    # Variables are a separate item, so that evaluation does not need the optimiser's state.
    manager.save(
        step,
        args=ocp.args.Composite(
            variables=ocp.args.StandardSave(variables),
            optimizer=ocp.args.StandardSave(to_host(dict(optimizer_items))),
            position=ocp.args.JsonSave(dict(position)),
        ),
        metrics=None if miou is None else {"mIoU": float(miou)},
        force=True,
    )


def restore(
    manager: ocp.CheckpointManager,
    variables_template: Mapping[str, Any],
    optimizer_template: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]] | None:
    """Restore the latest step.

    Args:
        manager: Manager of the run's workdir.
        variables_template: Variables with the same structure, shapes and dtypes.
        optimizer_template: Optimizer items with the same structure, shapes and dtypes.

    Returns:
        (variables, optimizer items, position) on the host; None if there is no checkpoint yet.

    Raises:
        CheckpointError: The checkpoint has a different structure or shapes, or cannot be read.
    """
    step = manager.latest_step()
    if step is None:
        return None
    args = ocp.args.Composite(
        variables=ocp.args.StandardRestore(to_host(dict(variables_template))),
        optimizer=ocp.args.StandardRestore(to_host(dict(optimizer_template))),
        position=ocp.args.JsonRestore(),
    )
    try:
        found = manager.restore(step, args=args)
    except (ValueError, KeyError, FileNotFoundError) as error:
        raise CheckpointError(
            f"it does not fit this model and optimiser ({str(error).splitlines()[0]})",
            file=manager.directory / str(step),
            hint="to use only its weights, set config.init_from to it and choose another workdir",
        ) from error
    return dict(found["variables"]), dict(found["optimizer"]), found["position"]


def find_step(path: str | Path) -> int:
    """Return the step that `load_variables` loads.

    Args:
        path: A workdir, or WORKDIR/checkpoints/STEP.

    Raises:
        CheckpointError: There is no complete checkpoint.
    """
    with open_manager(find_workdir(path)[0], read_only=True) as manager:
        return _select_step(manager, path)


def _select_step(manager: ocp.CheckpointManager, path: str | Path) -> int:
    """Return the step that `path` names; for a workdir the best step, else the latest."""
    workdir, step = find_workdir(path)
    steps = sorted(manager.all_steps())
    if not steps:
        raise CheckpointError(
            "it has no checkpoint yet", file=workdir, hint="train first, or give another workdir"
        )
    if step is None:
        best_step = manager.best_step()
        return steps[-1] if best_step is None else best_step
    if step not in map(str, steps):
        raise CheckpointError(
            "it is not a complete checkpoint",
            file=path,
            hint=f"complete checkpoints are: {', '.join(map(str, steps))}",
        )
    return int(step)


def load_variables(path: str | Path) -> tuple[Experiment, dict[str, Any]]:
    """Load a model's variables and its experiment.

    Args:
        path: A workdir (its best step, else its latest), or WORKDIR/checkpoints/STEP.

    Returns:
        The experiment, and the variables as NumPy arrays.

    Raises:
        CheckpointError: There is no complete checkpoint.
        WeightsError: A variable holds a NaN or an infinity.
    """
    workdir, _ = find_workdir(path)
    with open_manager(workdir, read_only=True) as manager:
        step = _select_step(manager, path)
        args = ocp.args.Composite(variables=ocp.args.StandardRestore())
        try:
            found = manager.restore(step, args=args)
        except (ValueError, KeyError, OSError) as error:
            raise CheckpointError(
                f"cannot be read ({str(error).splitlines()[0]})",
                file=manager.directory / str(step),
                hint="give another step, or copy the checkpoint again",
            ) from error
    check_finite(found["variables"], str(path))
    return with_classes(workdir, read_experiment(workdir)), found["variables"]


def save_variables(
    workdir: str | Path,
    experiment: Experiment,
    variables: Mapping[str, Any],
    dataset: Mapping[str, Any] | str,
) -> None:
    """Write a workdir that has only weights, as step 0.

    Args:
        workdir: The workdir; created if it does not exist.
        experiment: The experiment of the weights.
        variables: The model's variables, replicated or on the host.
        dataset: Content of dataset.json (`DatasetSpec.to_json`), as a dict or JSON.
    """
    write_experiment(workdir, experiment, dataset)
    with open_manager(workdir) as manager:
        variables = to_host(dict(variables))
        args = ocp.args.Composite(variables=ocp.args.StandardSave(variables))
        manager.save(0, args=args, force=True)
        manager.wait_until_finished()


def best(manager: ocp.CheckpointManager) -> dict[str, Any] | None:
    """Return {'step', 'mIoU'} of the best complete step, None before the first evaluation."""
    step = manager.best_step()
    return None if step is None else {"step": int(step), "mIoU": _miou(manager.metrics(step))}


def write_best(manager: ocp.CheckpointManager) -> None:
    """Wait for pending saves, then update best.json, in process 0 only."""
    manager.wait_until_finished()
    found = best(manager)
    if found and jax.process_index() == 0:
        write_json(Path(manager.directory).parent / "best.json", found)
