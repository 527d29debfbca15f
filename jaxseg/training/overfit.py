"""Proof of a data pipeline: a model must learn a few images by heart, or data, labels and model do not fit together."""

from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from jaxseg.config.resolve import check_alone
from jaxseg.data.sources import parse_split
from jaxseg.errors import DataError
from jaxseg.training.loop import train

GOAL = 0.95  # mIoU on the images it was trained on
STEPS, EVALUATE_EVERY = 1000, 50
RATE = 1e-3  # of Adam: published rates presume pretrained weights and thousands of steps
# No augmentation: what is left is reading, label map, normalisation, model, loss and evaluation.
PLAIN = dict(
    flip=0.0, vertical_flip=0.0, rotate=0.0, cutout=0.0, clahe=0.0, mosaic=0.0, class_crop=0.0, photometric=False,
    ratio_range=(1.0, 1.0), cat_max_ratio=1.0, class_balance=0.0,
)  # fmt: skip


def overfit(config: ConfigDict, workdir: str | Path, count: int) -> dict[str, Any]:
    """Train on the first `count` training images of an unresolved config until the mIoU on them is GOAL; returns train's summary.

    Raises ConfigError for a config that cannot be meant, and DataError, with the worst classes, if config.steps (at
    most STEPS) do not get there.
    """
    config = overfit_config(config, count, jax.device_count())
    summary = train(config, workdir, enough=GOAL)
    if summary["mIoU"] < GOAL:
        worst = sorted(
            (value["IoU"], name)
            for name, value in summary["per_class"].items()
            if value["IoU"] is not None
        )[:3]
        raise DataError(
            f"overfitting failed: mIoU {summary['mIoU']:.4f} on the {summary['images']} training images themselves after {config.steps} steps, below "
            f"{GOAL}; lowest: {', '.join(f'{name} {iou:.3f}' for iou, name in worst)}. Look at {workdir}/pictures: if the prediction "
            "is right but coarse, thin classes are too fine for this model (a smaller output stride or larger images help)"
            f"{'' if config.steps == STEPS else f' or it needs more steps, --config.steps={STEPS}'}; if not, labels and images do not "
            "belong together: scripts/check_data.py and browse_data.py show them."
        )
    return summary


def overfit_config(config: ConfigDict, count: int, devices: int) -> ConfigDict:
    """A copy of `config` that trains on, and evaluates on, the first `count` images of its training split, as they are."""
    config = check_alone(config.copy_and_resolve_references().unlock())
    split = first_of(config.dataset.train_split, count)
    batch = -(-min(config.batch_size, count) // devices) * devices
    config.update(
        dict(
            name=f"{config.name}_overfit",
            batch_size=batch,
            steps=min(config.steps, STEPS),
            log_every=10,
        )
    )
    config.eval_every = config.checkpoint_every = EVALUATE_EVERY
    config.dataset.update(PLAIN | dict(train_split=split, val_split=split))
    config.dataset.concat = ConfigDict()
    config.eval.update(dict(dataset="", root="", source="", scales=(1.0,), flip=False))
    config.model.dropout_rate = 0.0
    config.optimizer.update(dict(name="adam", learning_rate=RATE, weight_decay=0.0, clip_norm=0.0))
    config.schedule.update(
        dict(name="cosine", end_value=0.0, warmup_steps=0)
    )  # batch statistics settle as the rate falls
    return config


def first_of(split: str, count: int) -> str:
    """The first `count` samples of a split, or of the first of several: 'train[10:]+extra', 4 -> 'train[10:14]'. Raises DataError."""
    part = parse_split(split)[0]
    first, last = part["first"] or "0", part["last"] or ""
    if "%" in first + last:
        raise DataError(
            f"config.dataset.train_split='{split}': overfitting takes the first images of a split",
            field="dataset.train_split",
            hint="give numbers, 'train[100:]', not percents",
        )  # fmt: skip
    return f"{part['name']}[{first}:{min(int(first) + count, int(last or int(first) + count))}]"
