"""A predictor without weights, whose answers are known without the library."""

from types import SimpleNamespace

import numpy as np
from ml_collections import ConfigDict

from jaxseg.inference.predictor import Predictor


def toy(function):
    """A model without variables whose logits are function(images)."""
    return SimpleNamespace(apply=lambda variables, images, train: (function(images), {}))


def random_image(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def make_config(**run):
    defaults = dict(
        mode="whole",
        crop_size=(0, 0),
        stride=(0, 0),
        scales=(1.0,),
        flip=False,
        batch_size=1,
        resize=(0, 0),
    )
    data = dict(name="shapes", root="", source="files", channels=3, dtype="uint8", nodata=(), max_pixels=2**30,
                image_mean=(100.0, 100.0, 100.0), image_std=(50.0, 50.0, 50.0))  # fmt: skip
    return ConfigDict(
        {
            "precision": "float32",
            "model": {"align_corners": False},
            "dataset": data,
            "eval": defaults | run,
        }
    )


def make_predictor(config=None, **run):
    """Its class is the brightest channel."""
    names, colors = ("red", "green", "blue"), ((255, 0, 0), (0, 255, 0), (0, 0, 255))
    return Predictor(
        toy(lambda x: x), {}, config or make_config(**run), classes=names, palette=colors
    )


def make_float_predictor(**data):
    """The same of images of float32."""
    config = make_config()
    config.dataset.update(dict(dtype="float32", **data))
    return make_predictor(config)
