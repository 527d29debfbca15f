"""Evaluation of a workdir: metrics.json and pictures/ in its folder."""

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
    """Return where `evaluate_checkpoint` writes.

    Args:
        path: A workdir, which is the folder itself, or WORKDIR/checkpoints/STEP, whose own folder
            may be deleted, so that its evaluation is written to WORKDIR/evaluations/STEP.

    Raises:
        CheckpointError: `path` is neither.
    """
    workdir, step = find_workdir(expand(path))
    return workdir if step is None else workdir / "evaluations" / step


def evaluate_checkpoint(
    path: str | Path, config: Config | None = None, *, pictures: int = 8
) -> dict[str, Any]:
    """Evaluate a trained or converted model.

    Writes metrics.json and pictures/ into `evaluation_folder`. What a metrics.json there says about
    training stays in it.

    Args:
        path: A workdir (its best step) or one step, WORKDIR/checkpoints/STEP.
        config: An Experiment or a config whose `dataset`, `eval` and `precision` override the
            run's; an empty `dataset.root` means the run's if the data set is the same.
        pictures: Number of panels [image | truth | prediction] to draw.

    Returns:
        The summary, see `evaluate`, with the `step` that was evaluated, and `evaluated`: on which
        data, and how.

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
    """Say on which data, and how, an evaluation was made."""
    run = experiment.eval
    return {
        **dataclasses.asdict(ref),
        "split": experiment.dataset.val_split,
        "mode": run.mode,
        "resize": list(run.resize),
        "scales": list(run.scales),
        "flip": run.flip,
    }
