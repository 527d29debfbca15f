"""Tiny data sets and experiments for the tests of jaxseg.data."""

from pathlib import Path

import cv2
import numpy as np

from jaxseg.config.schema import Experiment, from_dict
from jaxseg.data import pipeline
from jaxseg.data.catalog import load_spec
from jaxseg.data.sources import Source
from jaxseg.data.validate import checks


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Write an image or label losslessly (as the suffix says), with its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels[..., ::-1] if pixels.ndim == 3 else pixels)


def make_folder(root: Path, train: int = 5, val: int = 2, size: tuple[int, int] = (20, 24)) -> Path:
    """Write a `folder` of 3 classes: random images t0, ..., v0, ..., whose labels hold 255 too."""
    rng = np.random.default_rng(0)
    for split, letter, count in (("train", "t", train), ("val", "v", val)):
        for index in range(count):
            write_png(
                root / f"images/{split}/{letter}{index}.png",
                rng.integers(0, 256, (*size, 3), np.uint8),
            )
            write_png(
                root / f"labels/{split}/{letter}{index}.png",
                rng.choice([0, 1, 2, 255], size).astype(np.uint8),
            )
    (root / "classes.txt").write_text("sky\nroad\ncar\n")
    return root


def make_experiment(
    name: str = "folder",
    root: str | Path = "",
    batch_size: int = 4,
    seed: int = 3,
    evaluation: dict | None = None,
    **dataset,
) -> Experiment:
    """Make an experiment whose model does not matter."""
    dataset = dict(name=name, root=str(root), crop_size=(16, 20), dtype="uint8") | dataset
    head = dict(name="fcn", channels=8)
    model = dict(backbone=dict(name="resnet"), neck={}, heads=dict(decode=head), norm={})
    parts = dict(model=model, dataset=dataset, eval=evaluation or {})
    return from_dict(Experiment, dict(seed=seed, batch_size=batch_size, **parts))


def train_source(experiment: Experiment) -> Source:
    """The training samples of an experiment."""
    return pipeline.train_source(experiment.dataset, load_spec(experiment.dataset))


def train_batches(experiment: Experiment, **arguments) -> pipeline.TrainBatches:
    """The training batches of an experiment."""
    return pipeline.train_batches(
        experiment.dataset,
        load_spec(experiment.dataset),
        batch_size=experiment.batch_size,
        seed=experiment.seed,
        **arguments,
    )


def eval_samples(experiment: Experiment, split: str | None = None) -> pipeline.EvalSamples:
    """The samples that an experiment is evaluated on."""
    spec = load_spec(experiment.dataset)
    return pipeline.eval_samples(experiment.dataset, experiment.eval, spec, split)


def check_experiment(experiment: Experiment) -> None:
    """The check of an experiment's data before step 0."""
    checks.check(experiment, load_spec(experiment.dataset))
