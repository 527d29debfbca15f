"""A predictor without weights, whose answers are known without the library."""

from types import SimpleNamespace

import numpy as np

from jaxseg.config import (
    DatasetConfig,
    EvalConfig,
    Experiment,
    ModelConfig,
    ModuleConfig,
    NormConfig,
)
from jaxseg.inference.predictor import Predictor

NAMES, COLORS = ("red", "green", "blue"), ((255, 0, 0), (0, 255, 0), (0, 0, 255))


def toy(function):
    """A model without variables whose logits are function(images)."""
    return SimpleNamespace(apply=lambda variables, images, train: (function(images), {}))


def random_image(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def make_experiment(*, dataset=None, num_classes=3, precision="float32", **run):
    """An experiment on uint8 RGB images, with these fields of its dataset and (`run`) its eval."""
    images = dict(
        name="shapes",
        crop_size=(8, 8),
        dtype="uint8",
        image_mean=(100.0,) * 3,
        image_std=(50.0,) * 3,
    )
    return Experiment(
        precision=precision,
        model=ModelConfig(
            ModuleConfig(), ModuleConfig(), {}, NormConfig(), num_classes=num_classes
        ),
        dataset=DatasetConfig(**images | (dataset or {})),
        eval=EvalConfig(**run),
    )


def make_predictor(experiment=None, model=None, **run):
    """Its class is the brightest channel."""
    model = model or toy(lambda x: x)
    experiment = experiment or make_experiment(**run)
    return Predictor(model, {}, experiment, classes=NAMES, palette=COLORS)


def make_float_predictor(**dataset):
    """The same of images of float32."""
    return make_predictor(make_experiment(dataset=dict(dtype="float32") | dataset))
