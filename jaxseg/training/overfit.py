"""Overfit a few images: a sanity check of data, labels, model and loss together."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
from flax.core import FrozenDict

from jaxseg.config.resolve import Config
from jaxseg.config.schema import Experiment
from jaxseg.data.sources import parse_split
from jaxseg.errors import DataError
from jaxseg.experiments import load_experiment
from jaxseg.training.loop import train

TARGET_MIOU = 0.95  # on the images that the model was trained on
MAX_STEPS, EVAL_EVERY, LOG_EVERY = 1000, 50, 10
LEARNING_RATE = 1e-3  # of Adam; published rates assume pretrained weights and thousands of steps
# Fields of DatasetConfig that turn augmentation off.
NO_AUGMENTATION: dict[str, Any] = {
    "flip": 0.0,
    "vertical_flip": 0.0,
    "rotate": 0.0,
    "cutout": 0.0,
    "clahe": 0.0,
    "mosaic": 0.0,
    "class_crop": 0.0,
    "photometric": False,
    "ratio_range": (1.0, 1.0),
    "cat_max_ratio": 1.0,
    "class_balance": 0.0,
}


def overfit(experiment: Experiment | Config, workdir: str | Path, count: int) -> dict[str, Any]:
    """Train on the first images of the training split until the mIoU on them is TARGET_MIOU.

    Args:
        experiment: An Experiment, or a config that is still to be resolved.
        workdir: See `train`.
        count: Number of images.

    Returns:
        The summary of `train`.

    Raises:
        DataError: The target is not reached within the experiment's steps, at most MAX_STEPS; the
            error lists the worst classes.
        ConfigError: See `train`.
    """
    if not isinstance(experiment, Experiment):
        experiment = load_experiment(experiment, measured=False)
    experiment = overfit_experiment(experiment, count, jax.device_count())
    summary = train(experiment, workdir, target_miou=TARGET_MIOU)
    if (summary["mIoU"] or 0.0) < TARGET_MIOU:
        raise _not_reached(summary, experiment, workdir)
    return summary


def _not_reached(summary: dict[str, Any], experiment: Experiment, workdir: str | Path) -> DataError:
    miou = summary["mIoU"] or 0.0
    found = [(row["IoU"], name) for name, row in summary["per_class"].items()]
    lowest = sorted((iou, name) for iou, name in found if iou is not None)[:3]
    names = ", ".join(f"{name} {iou:.3f}" for iou, name in lowest)
    longer = (
        ""
        if experiment.steps == MAX_STEPS
        else f" or it needs more steps, config.steps={MAX_STEPS}"
    )
    return DataError(
        f"overfitting failed: mIoU {miou:.4f} on the {summary['images']} training images "
        f"themselves after {experiment.steps} steps, below {TARGET_MIOU}; lowest: {names}",
        file=workdir,
        hint=f"see {workdir}/pictures: if predictions are right but coarse, some classes are too "
        f"thin for this model (a smaller output stride or larger images help){longer}; otherwise "
        "labels and images may not match: scripts/check_data.py and browse_data.py show them",
    )


def overfit_experiment(experiment: Experiment, count: int, devices: int) -> Experiment:
    """Make an experiment that trains and evaluates on the same few images, without augmentation.

    Args:
        experiment: Provides model, losses and data.
        count: Number of images, the first of the training split.
        devices: Number of devices; the batch size becomes a multiple of it.

    Returns:
        The experiment.

    Raises:
        DataError: The training split is given in percent.
    """
    split = first_of(experiment.dataset.train_split, count)
    smallest = min(experiment.batch_size, count)
    return dataclasses.replace(
        experiment,
        name=f"{experiment.name}_overfit",
        batch_size=-(-smallest // devices) * devices,
        steps=min(experiment.steps, MAX_STEPS),
        log_every=LOG_EVERY,
        eval_every=EVAL_EVERY,
        checkpoint_every=EVAL_EVERY,
        model=dataclasses.replace(experiment.model, dropout_rate=0.0),
        dataset=dataclasses.replace(
            experiment.dataset,
            **NO_AUGMENTATION,
            train_split=split,
            val_split=split,
            concat=FrozenDict(),
        ),
        optimizer=dataclasses.replace(
            experiment.optimizer,
            name="adam",
            learning_rate=LEARNING_RATE,
            weight_decay=0.0,
            clip_norm=0.0,
        ),
        # A falling rate lets the batch statistics converge.
        schedule=dataclasses.replace(
            experiment.schedule, name="cosine", end_value=0.0, warmup_steps=0
        ),
        eval=dataclasses.replace(
            experiment.eval, dataset="", root="", source="", scales=(1.0,), flip=False
        ),
    )


def first_of(split: str, count: int) -> str:
    """Return the split of the first samples: 'train[10:]+extra', 4 -> 'train[10:14]'.

    Args:
        split: One split, or several, of which the first is used.
        count: Number of samples.

    Raises:
        DataError: The split is given in percent.
    """
    part = parse_split(split)[0]
    first, last = part["first"] or "0", part["last"] or ""
    if "%" in first + last:
        raise DataError(
            f"config.dataset.train_split='{split}': overfitting takes the first images of a split",
            field="dataset.train_split",
            hint="give numbers, 'train[100:]', not percentages",
        )
    end = int(first) + count
    return f"{part['name']}[{first}:{min(end, int(last)) if last else end}]"
