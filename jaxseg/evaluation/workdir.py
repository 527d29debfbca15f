"""Evaluation of a workdir, which writes metrics.json and pictures/ into it."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import jax

from jaxseg import visualize
from jaxseg.checkpoint import find_step
from jaxseg.config.resolve import Config
from jaxseg.config.schema import Experiment
from jaxseg.data import pipeline
from jaxseg.data.spec import DatasetRef
from jaxseg.evaluation.summary import evaluate
from jaxseg.files import expand, write_json
from jaxseg.inference.predictor import load_model
from jaxseg.inference.settings import make_settings
from jaxseg.precision import make_policy
from jaxseg.workdir import find_workdir, read_training


def evaluation_folder(path: str | Path) -> Path:
    """Return the folder that `evaluate_checkpoint` writes to.

    Args:
        path: A workdir, or WORKDIR/checkpoints/STEP.

    Returns:
        The workdir itself, or WORKDIR/evaluations/STEP, since a checkpoint's own folder may be
        deleted.

    Raises:
        CheckpointError: `path` is neither.
    """
    workdir, step = find_workdir(expand(path))
    return workdir if step is None else workdir / "evaluations" / step


def evaluate_checkpoint(
    path: str | Path, config: Config | None = None, *, pictures: int = 8
) -> dict[str, Any]:
    """Evaluate a trained or converted model.

    Writes metrics.json and pictures/ into `evaluation_folder`. The training summary of an existing
    metrics.json is kept.

    Args:
        path: A workdir (its best step) or one step, WORKDIR/checkpoints/STEP.
        config: An Experiment or a config whose `dataset`, `eval` and `precision` override the
            run's. If it has the run's data set without a `dataset.root`, the run's root is used.
        pictures: Number of panels [image | truth | prediction] to draw.

    Returns:
        The summary of `evaluate`, with the evaluated `step`, and `evaluated`: the data and the
        test-time settings.

    Raises:
        CheckpointError: There is no complete checkpoint, or a JSON file of the workdir is damaged.
        ConfigError: A field of `config` is unknown or out of range.
        DataError: The data set cannot be read, or has other classes.
    """
    path = expand(path)
    workdir, _ = find_workdir(path)
    folder = evaluation_folder(path)
    training = read_training(folder)  # before the evaluation, whose result an error would lose
    step = find_step(path)  # once: the best of a run that continues changes
    model, variables, experiment = load_model(workdir / "checkpoints" / str(step), config)
    ref, spec = pipeline.eval_dataset(experiment.dataset, experiment.eval)
    samples = pipeline.eval_samples(experiment.dataset, experiment.eval, spec)
    with make_policy(experiment.precision).matmul_precision():
        summary = evaluate(
            model,
            variables,
            make_settings(experiment),
            samples,
            num_classes=experiment.model.num_classes,
            pictures=pictures,
            save_picture=partial(visualize.save_picture, folder / "pictures"),
        )
    summary |= {"step": step, "evaluated": _describe(ref, experiment)}
    if training:
        summary["training"] = training
    if jax.process_index() == 0:
        write_json(folder / "metrics.json", summary)
    return summary


def _describe(ref: DatasetRef, experiment: Experiment) -> dict[str, Any]:
    """Describe the data and the settings of an evaluation."""
    run = experiment.eval
    return {
        **dataclasses.asdict(ref),
        "split": experiment.dataset.val_split,
        "mode": run.mode,
        "resize": list(run.resize),
        "scales": list(run.scales),
        "flip": run.flip,
    }
