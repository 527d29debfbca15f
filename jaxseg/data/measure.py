"""Measured fields of an experiment: image dtype, mean and standard deviation, and class weights."""

import dataclasses
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.core import FrozenDict
from jax.experimental import multihost_utils

from jaxseg import errors
from jaxseg.config.defaults import IMAGENET
from jaxseg.config.resolve import has_auto_weights
from jaxseg.config.schema import DatasetConfig, Experiment
from jaxseg.data import label_counts, statistics
from jaxseg.data.pipeline import image_options, train_source
from jaxseg.data.sources import Source, open_source
from jaxseg.data.sources.records import find_prepared
from jaxseg.data.spec import DatasetSpec
from jaxseg.errors import DataError, JaxsegError

log = logging.getLogger(__name__)

SAMPLES = 200  # images that mean and standard deviation are measured on
DIGITS = 6  # after the decimal point of a class weight


def measure(experiment: Experiment, spec: DatasetSpec) -> Experiment:
    """Fill in the fields that an experiment leaves to its training data.

    The dtype of the images is that of the first one. Mean and standard deviation are those of the
    data set's statistics.json, ImageNet's for 8-bit RGB (most runs start from its weights), else
    measured. A loss whose class_weight is 'auto' gets the weights of the training labels. Where
    nothing is left open, no file is read.

    With several processes, all must call this: process 0 measures, and the others receive its
    values or its error.

    Args:
        experiment: The experiment; it is not changed.
        spec: The spec of `experiment.dataset` (`catalog.load_spec`).

    Returns:
        The experiment with these fields filled in.

    Raises:
        DataError: Images or labels cannot be read.
    """
    if not (_lacks_images(experiment.dataset) or _auto_losses(experiment)):
        return experiment
    if jax.process_count() == 1:
        return _filled(experiment, _measured(experiment, spec))
    return _filled(experiment, _received(experiment, spec))


def _lacks_images(dataset: DatasetConfig) -> bool:
    """Return whether dtype, mean or standard deviation are open."""
    return not (dataset.dtype and dataset.image_mean and dataset.image_std)


def _auto_losses(experiment: Experiment) -> list[str]:
    """Return the labels of the losses whose class weights are to be measured."""
    return [label for label, loss in experiment.losses.items() if has_auto_weights(loss.options)]


def _filled(experiment: Experiment, values: Mapping[str, Any]) -> Experiment:
    """Return the experiment with the values that `_measured` gave."""
    images = {key: _frozen(values[key]) for key in ("dtype", "image_mean", "image_std")}
    losses = dict(experiment.losses)
    for label in _auto_losses(experiment):
        weights = {"class_weight": tuple(values["class_weight"])}
        options: FrozenDict[str, Any] = FrozenDict({**losses[label].options, **weights})
        losses[label] = dataclasses.replace(losses[label], options=options)
    return dataclasses.replace(
        experiment,
        dataset=dataclasses.replace(experiment.dataset, **images),
        losses=FrozenDict(losses),
    )


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _measured(experiment: Experiment, spec: DatasetSpec) -> dict[str, Any]:
    """Return the values of all measured fields; those that are given stay as they are."""
    dataset = experiment.dataset
    if _lacks_images(dataset):
        dataset = _measure_images(dataset, spec)
    weights: tuple[float, ...] = ()
    if _auto_losses(experiment):
        source = train_source(dataset, spec)
        counts = label_counts.count_labels(source, spec.num_classes, progress=True)
        found = label_counts.class_weights(counts.sum(0)[:-1])
        weights = tuple(round(weight, DIGITS) for weight in found)
        log.info("class_weight='auto': %s", " ".join(f"{weight:.4g}" for weight in weights))
    return {
        "dtype": dataset.dtype,
        "image_mean": dataset.image_mean,
        "image_std": dataset.image_std,
        "class_weight": weights,
    }


def _measure_images(dataset: DatasetConfig, spec: DatasetSpec) -> DatasetConfig:
    """Return the data set with the dtype, mean and standard deviation of its images."""
    source, dtype = _first_image(dataset, spec)
    dataset = dataclasses.replace(dataset, dtype=dtype)
    if dataset.image_mean and dataset.image_std:
        return dataset
    folder: str | Path = dataset.root
    if dataset.source == "tfds":
        folder = find_prepared(dataset.name, dataset.root)
    if stored := statistics.read_statistics(folder, dataset.channels):
        mean, std = stored
    elif dataset.channels == 3 and dtype == "uint8":
        mean, std = IMAGENET["image_mean"], IMAGENET["image_std"]
    else:
        log.info(
            "measuring mean and std of %d channels of %s (scripts/check_data.py can store them for "
            "later runs)",
            dataset.channels,
            dtype,
        )
        source = source or _open_images(dataset, spec)
        mean, std = statistics.image_statistics(source, SAMPLES)
    return dataclasses.replace(dataset, image_mean=tuple(mean), image_std=tuple(std))


def _first_image(dataset: DatasetConfig, spec: DatasetSpec) -> tuple[Source | None, str]:
    """Return the training images and the dtype of the first.

    Without training images RGB counts as uint8: a converted model is evaluated, or shown photos.
    """
    try:
        source = _open_images(dataset, spec)
        return source, dataset.dtype or source.header(0).dtype
    except DataError:
        if dataset.channels != 3:
            raise
        return None, dataset.dtype or "uint8"


def _open_images(dataset: DatasetConfig, spec: DatasetSpec) -> Source:
    """Open the training split, without the data sets of `concat`."""
    return open_source(
        spec, dataset.root, dataset.train_split, source=dataset.source, **image_options(dataset)
    )


# --- Several processes ---


def _received(experiment: Experiment, spec: DatasetSpec) -> dict[str, Any]:
    """Measure on process 0; return its values, or raise its error, on every process."""
    answer: dict[str, Any] = {}
    failure: Exception | None = None
    if jax.process_index() == 0:
        try:
            answer = {"values": _measured(experiment, spec)}
        except Exception as error:  # of any kind: the other processes must not wait forever
            failure = error
            answer = {"error": _describe(error)}
    answer = json.loads(_broadcast(json.dumps(answer).encode()))
    if failure is not None:
        raise failure
    if "error" in answer:
        raise _restore(answer["error"])
    return answer["values"]


def _broadcast(message: bytes) -> bytes:
    """Return the bytes that process 0 gave, on every process."""
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(message))))
    buffer = np.zeros(length, np.uint8)
    if jax.process_index() == 0:
        buffer[:] = np.frombuffer(message, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(buffer)).astype(np.uint8).tobytes()


def _describe(error: Exception) -> dict[str, str]:
    """Return an error as strings."""
    if isinstance(error, JaxsegError):
        fields = {key: getattr(error, key) for key in ("problem", "file", "field", "hint")}
        return {"class": type(error).__name__, **fields}
    return {"class": "JaxsegError", "problem": f"process 0 failed: {type(error).__name__}: {error}"}


def _restore(fields: dict[str, str]) -> JaxsegError:
    """Return the error that `_describe` took apart."""
    kind = getattr(errors, fields.pop("class"), JaxsegError)
    return kind(**fields)
