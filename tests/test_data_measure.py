"""Measured fields: from the data where they are open, and the same on every process."""

import dataclasses
import json
import os
import socket
import subprocess
import sys

import cv2
import numpy as np
import pytest
from flax.core import FrozenDict
from helpers.data_helpers import make_experiment, make_folder
from tifffile import imwrite

from jaxseg.config.defaults import AUTO, IMAGENET
from jaxseg.config.schema import LossConfig
from jaxseg.data.catalog import load_spec
from jaxseg.data.label_counts import class_weights
from jaxseg.data.measure import measure
from jaxseg.errors import DataError


def with_losses(experiment, **weights):
    """The experiment with a loss for each label, of these class weights."""
    losses = {
        label: LossConfig("cross_entropy", options=FrozenDict(class_weight=value))
        for label, value in weights.items()
    }
    return dataclasses.replace(experiment, losses=FrozenDict(losses))


def measured(experiment):
    return measure(experiment, load_spec(experiment.dataset))


def make_bands(root, channels=5):
    """A data set of uint16 TIFFs whose bands have the means 100, 200, ... ."""
    make_folder(root)
    rng = np.random.default_rng(1)
    for file in sorted(root.glob("images/*/*.png")):
        values = rng.normal(100 * np.arange(1, channels + 1), 10, (20, 24, channels))
        imwrite(file.with_suffix(".tif"), values.round().astype(np.uint16), planarconfig="contig")
        file.unlink()
    return root


def test_nothing_open_reads_nothing(tmp_path):
    spec = load_spec(make_experiment(root=make_folder(tmp_path / "a")).dataset)
    given = with_losses(
        make_experiment(root=tmp_path / "missing", **IMAGENET), decode=(), aux_0=(1.0, 2.0, 0.0)
    )
    assert measure(given, spec) is given


def test_rgb_of_8_bits_has_imagenets_statistics(tmp_path):
    experiment = make_experiment(root=make_folder(tmp_path), dtype="")
    dataset = measured(experiment).dataset
    assert experiment.dataset.dtype == "" and dataset.dtype == "uint8"
    assert dataset.image_mean == IMAGENET["image_mean"]
    assert dataset.image_std == IMAGENET["image_std"]


def test_statistics_json_comes_first(tmp_path):
    root = make_folder(tmp_path)
    (root / "statistics.json").write_text(json.dumps({"mean": [1, 2, 3], "std": [4, 5, 6]}))
    dataset = measured(make_experiment(root=root)).dataset
    assert (dataset.image_mean, dataset.image_std) == ((1.0, 2.0, 3.0), (4.0, 5.0, 6.0))


def test_other_images_are_measured(tmp_path):
    root = make_bands(tmp_path)
    dataset = measured(make_experiment(root=root, channels=5, dtype="")).dataset
    assert dataset.dtype == "uint16"
    np.testing.assert_allclose(dataset.image_mean, np.arange(100, 600, 100), atol=1)
    np.testing.assert_allclose(dataset.image_std, [10] * 5, atol=0.5)


def test_without_training_images_only_rgb_of_8_bits_is_known(tmp_path):
    root = make_folder(tmp_path, train=0)
    dataset = measured(make_experiment(root=root, dtype="")).dataset
    assert dataset.dtype == "uint8" and dataset.image_mean == IMAGENET["image_mean"]
    for open_fields in (dict(channels=5, dtype=""), dict(dtype="float32")):
        with pytest.raises(DataError):
            measured(make_experiment(root=root, **open_fields))


def test_class_weights_are_those_of_the_training_labels(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXSEG_CACHE", str(tmp_path / "cache"))
    root = make_folder(tmp_path / "data")
    experiment = make_experiment(root=root, train_split="train[:1]*3+train[1:2]", **IMAGENET)
    experiment = with_losses(experiment, decode=AUTO, aux_0=AUTO, aux_1=(1.0, 1.0, 1.0))
    losses = measured(experiment).losses
    labels = [decode_png(root / f"labels/train/t{index}.png") for index in (0, 0, 0, 1)]
    counts = np.sum([np.bincount(label.ravel(), minlength=256)[:3] for label in labels], 0)
    expected = tuple(round(weight, 6) for weight in class_weights(counts))
    assert losses["decode"].options["class_weight"] == expected
    assert losses["aux_0"].options["class_weight"] == expected
    assert losses["aux_1"].options["class_weight"] == (1.0, 1.0, 1.0)
    assert experiment.losses["decode"].options["class_weight"] == AUTO


def decode_png(file):
    return cv2.imread(str(file), cv2.IMREAD_UNCHANGED)


PROCESS = """
import dataclasses, json, sys
import jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
number, address, root, channels = int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
jax.distributed.initialize(address, 2, number)
from helpers.data_helpers import make_experiment
from jaxseg.data.catalog import load_spec
from jaxseg.data.measure import measure
from jaxseg.errors import DataError

experiment = make_experiment(root=root, channels=channels, dtype="")
spec = load_spec(experiment.dataset)
if number:  # its copy of the data set is gone
    dataset = dataclasses.replace(experiment.dataset, root=root + "-missing")
    experiment = dataclasses.replace(experiment, dataset=dataset)
try:
    dataset = measure(experiment, spec).dataset
    print(json.dumps([dataset.dtype, dataset.image_mean, dataset.image_std]))
except DataError as error:
    print(json.dumps([error.problem, error.file, error.field, error.hint]))
"""


@pytest.mark.parametrize("channels", [5, 4])
def test_process_0_measures_and_the_others_receive(tmp_path, channels):
    """Its values, or, where the images have other channels than the config says, its error."""
    root = make_bands(tmp_path / "data")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(number), address, str(root), str(channels)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert all(process.returncode == 0 for process in processes), outputs
    first, second = (json.loads(out.splitlines()[-1]) for out, _ in outputs)
    assert first == second
    if channels == 5:
        assert first[0] == "uint16" and len(first[1]) == len(first[2]) == 5
    else:
        assert first[2] == "dataset.channels" and first[1].startswith(str(root))
