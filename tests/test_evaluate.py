"""Evaluation: every image once, whatever the devices, batches and sizes; the door writes what it promises."""

import json
import logging
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tifffile
from helpers.data_helpers import make_config as data_config
from helpers.data_helpers import make_folder
from ml_collections import ConfigDict

from jaxseg import checkpoint, metrics
from jaxseg.config import defaults
from jaxseg.data.pipeline import eval_samples
from jaxseg.errors import DataError
from jaxseg.evaluation import evaluate
from jaxseg.inference.predictor import Predictor, Settings, make_settings

SETTINGS = Settings(mean=(128.0,) * 3, std=(64.0,) * 3)
SLIDE = SETTINGS._replace(mode="slide", crop_size=(8, 8), stride=(5, 6))


class Samples(list):
    """Random images and labels; the label's own size may differ from the image's."""

    def __init__(self, sizes):
        rng = np.random.default_rng(0)
        for i, (image, label) in enumerate(sizes):
            truth = rng.choice([0, 1, 2, 255], size=label).astype(np.int32)
            pixels = rng.integers(0, 256, (*image, 3), np.uint8)
            self.append({"image": pixels, "label": truth, "name": f"sample{i}"})
        self.spec = SimpleNamespace(
            name="toy",
            classes=("red", "green", "blue"),
            palette=((255, 0, 0), (0, 255, 0), (0, 0, 255)),
        )

    def shape(self, i):
        return self[i]["image"].shape[:2]


@pytest.fixture(scope="module")
def samples():
    """7 images of two sizes that alternate."""
    return Samples([((8, 12), (10, 15)), ((9, 9), (9, 9))] * 3 + [((8, 12), (10, 15))])


@pytest.fixture(scope="module")
def model():
    """Logits are the normalised image times a variable: the brightest channel is the class."""
    return SimpleNamespace(apply=lambda variables, images, train: (images * variables["scale"], {}))


VARIABLES = {"scale": np.float32(2.0)}


@pytest.mark.parametrize(
    "settings",
    [
        SETTINGS,
        SETTINGS._replace(batch_size=2),
        SLIDE,
        SLIDE._replace(batch_size=3, flip=True, scales=(1.0, 1.5)),
    ],
    ids=["whole", "whole-batch2", "slide", "slide-views"],
)
def test_four_devices_count_as_one(model, samples, settings):
    assert len(jax.local_devices()) == 4
    one = evaluate.count(model, VARIABLES, settings, samples, devices=jax.local_devices()[:1])
    four = evaluate.count(model, VARIABLES, settings, samples)
    np.testing.assert_array_equal(one.confusion, four.confusion)
    assert one.nonfinite_pixels == four.nonfinite_pixels == 0
    assert one.confusion.sum() == sum(np.sum(sample["label"] != 255) for sample in samples)


def test_counts_equal_the_predictors(model, samples):
    """An identity model on images that are not resized: the prediction is known without the library."""
    chosen = Samples([((9, 9), (9, 9))] * 3)
    expected = np.zeros((3, 3), np.int64)
    for sample in chosen:
        expected += np.asarray(
            metrics.confusion_matrix(sample["image"].argmax(-1), sample["label"], 3)
        )
    for settings in (SETTINGS, SLIDE):
        np.testing.assert_array_equal(
            evaluate.count(model, VARIABLES, settings, chosen).confusion, expected
        )


@pytest.mark.parametrize("settings", [SETTINGS, SLIDE], ids=["whole", "slide"])
def test_every_image_is_seen_once(model, samples, settings):
    seen = []
    evaluate.count(
        model,
        VARIABLES,
        settings,
        samples,
        look=lambda i, sample, ids: seen.append((i, ids().shape)),
    )
    assert sorted(seen) == [(i, sample["label"].shape) for i, sample in enumerate(samples)]


def test_samples_without_shape_in_any_order(model, samples):
    class Plain(list):
        spec = samples.spec

    settings = SETTINGS._replace(batch_size=2)
    counts = evaluate.count(model, VARIABLES, settings, Plain(samples[::-1]))
    np.testing.assert_array_equal(
        counts.confusion, evaluate.count(model, VARIABLES, settings, samples).confusion
    )


def test_second_evaluation_compiles_nothing(samples):
    traced = []
    model = SimpleNamespace(apply=lambda variables, images, train: (traced.append(1) or images, {}))
    for _ in range(2):
        evaluate.count(model, VARIABLES, SETTINGS, samples)
    assert len(traced) == 2  # one per size
    traced.clear()
    for _ in range(2):
        evaluate.count(model, VARIABLES, SLIDE, samples)
    assert len(traced) == 1  # one window size


def test_label_that_is_no_class(model):
    wrong = Samples([((8, 8), (8, 8))] * 2)
    wrong[1]["label"][0, 0] = 7
    with pytest.raises(ValueError, match="sample1 holds 7"):
        evaluate.count(model, VARIABLES, SETTINGS, wrong)


def test_unreadable_sample_is_reported(model, samples):
    class Broken(Samples):
        def __getitem__(self, i):
            raise OSError("cannot read b.png")

    with pytest.raises(OSError, match="b.png"):
        evaluate.count(model, VARIABLES, SETTINGS, Broken([((8, 8), (8, 8))]))


def make_config(num_classes=3):
    data = defaults.DATASET | dict(name="shapes", image_mean=(0.0,) * 3, image_std=(1.0,) * 3)
    return ConfigDict(
        {
            "model": {"align_corners": False, "num_classes": num_classes},
            "dataset": data,
            "eval": defaults.EVALUATION,
        }
    )


def test_evaluate_returns_metrics_and_pictures(model, samples, tmp_path):
    drawn = {}
    summary = evaluate.evaluate(
        model, VARIABLES, make_config(), samples, pictures=3, save_picture=drawn.__setitem__
    )
    assert sorted(drawn) == ["sample0", "sample3", "sample6"]
    assert all(p.dtype == np.uint8 and p.ndim == 3 for p in drawn.values())
    assert summary["images"] == 7 and summary["images_per_second"] > 0
    counts = evaluate.count(
        model, VARIABLES, SETTINGS._replace(mean=(0.0,) * 3, std=(1.0,) * 3), samples
    )
    assert summary["mIoU"] == metrics.summarize(counts.confusion, samples.spec.classes)["mIoU"]
    assert summary["nonfinite_pixels"] == 0
    json.dumps(summary, allow_nan=False)


def test_evaluate_refuses(model, samples):
    with pytest.raises(DataError, match="19 classes"):
        evaluate.evaluate(model, VARIABLES, make_config(19), samples)
    with pytest.raises(DataError) as error:
        evaluate.evaluate(model, VARIABLES, make_config(), Samples([]))
    assert error.value.field == "dataset.val_split"


# --- Test-time scales -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resize", [(0, 0), (30, 13)])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_samples_hold_each_scale_of_the_image_in_the_file(tmp_path, dtype, resize):
    root, scales = make_folder(tmp_path), (0.5, 1.0, 1.75)
    for file in (root / "images/val").glob("*"):
        file.unlink()
    images = [
        np.random.default_rng(i)
        .uniform(0, 250 if dtype == "uint8" else 60000, (20, 24, 3))
        .astype(dtype)
        for i in range(2)
    ]
    for i, image in enumerate(images):
        tifffile.imwrite(root / f"images/val/v{i}.tif", image, photometric="rgb")
    config = data_config(root=str(root), dtype=dtype, image_mean=(0.0,) * 3, image_std=(1.0,) * 3)
    config.eval.update(dict(scales=scales, resize=resize, flip=True))
    config.update(dict(precision="float32", model=dict(align_corners=False, num_classes=3)))
    samples = eval_samples(config)
    sizes = [(10, 12), (20, 24), (35, 42)] if resize == (0, 0) else [(6, 7), (13, 16), (22, 26)]
    for image, sample in zip(images, samples):
        for size, view in zip(sizes, sample["views"]):
            np.testing.assert_array_equal(
                view, cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
            )
            assert view.dtype == dtype
        assert sample["image"] is sample["views"][1] and sample["label"].shape == (20, 24)
    # Evaluation and prediction agree, and the score of an identity model is that of the scales' mean.
    identity = SimpleNamespace(
        apply=lambda variables, images, train: (images * variables["scale"] / 60000, {})
    )
    counts = evaluate.count(identity, VARIABLES, make_settings(config), samples)
    segment = Predictor(identity, VARIABLES, config, classes="abc", palette=((0, 0, 0),) * 3)
    expected = sum(
        np.asarray(metrics.confusion_matrix(segment(image), sample["label"], 3))
        for image, sample in zip(images, samples)
    )
    np.testing.assert_array_equal(counts.confusion, expected)


# --- Scores that are not finite ---------------------------------------------------------------------------------------


def broken_model(value):
    """Red becomes `value` where its normalised value is above 1.9 (250 and more); the logits are as large as the image."""

    def apply(variables, images, train):
        return images.at[..., 0].set(jnp.where(images[..., 0] > 1.9, value, images[..., 0])), {}

    return SimpleNamespace(apply=apply)


@pytest.mark.parametrize(
    "settings, value",
    [(SETTINGS, np.nan), (SETTINGS._replace(batch_size=2), np.inf), (SETTINGS._replace(flip=True), -np.inf), (SLIDE, np.inf),
     (SETTINGS._replace(scales=(1.0, 2.0)), -np.inf), (SLIDE._replace(flip=True, batch_size=3), -np.inf)],
)  # fmt: skip
def test_scores_that_are_not_finite_are_counted(settings, value, caplog):
    """4 pixels of the 6th of 6 images, on four devices: copies of it that fill up the batch do not count."""
    chosen = Samples([((9, 9), (9, 9))] * 6)
    for sample in chosen:
        sample["image"][..., 0] = np.minimum(sample["image"][..., 0], 200)
    chosen[5]["image"][3:5, 2:4, 0] = 255
    several = len(settings.scales) > 1  # twice as large, 4 pixels blend into their neighbours
    with caplog.at_level(logging.WARNING, logger="jaxseg.evaluation.evaluate"):
        found = evaluate.count(broken_model(value), VARIABLES, settings, chosen).nonfinite_pixels
    assert 4 <= found <= 81 if several else found == 4
    [record] = caplog.records
    assert "sample5" in record.getMessage() and f"{found} pixels" in record.getMessage()


def test_ignored_pixels_count_as_not_finite_too():
    chosen = Samples([((9, 9), (9, 9))])
    chosen[0]["image"][:], chosen[0]["label"][:] = 255, 255
    counts = evaluate.count(broken_model(np.nan), VARIABLES, SETTINGS, chosen)
    assert counts.nonfinite_pixels == 81 and counts.confusion.sum() == 0


# --- Several processes ------------------------------------------------------------------------------------------------

PROCESS = """
import sys
import jax
import numpy as np

rank, port = int(sys.argv[1]), sys.argv[2]
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=rank, initialization_timeout=60)
from jaxseg import evaluate
from test_evaluate import SETTINGS, SIZES, SLIDE, VARIABLES, Samples, broken_model

counts = np.array([0, 1, 2**31 - 1, 2**31 + 3, 2**40 + 12345, 2**61 - 1], np.int64)
total = evaluate.sum_over_processes(counts + rank)
assert total.dtype == np.int64, total.dtype
assert total.tolist() == (2 * counts + 1).tolist(), total
for settings in (SETTINGS, SLIDE):
    found = evaluate.count(broken_model(np.nan), VARIABLES, settings, Samples(SIZES))
    print(settings.mode, found.confusion.tolist(), found.nonfinite_pixels)
"""
SIZES = [((8, 12), (10, 15)), ((9, 9), (9, 9))] * 2 + [((9, 9), (9, 9))]


def test_two_processes_sum_exactly_and_count_what_one_does():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
        "XLA_FLAGS": "",
    }
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(rank), port],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        results = [process.communicate(timeout=120) for process in started]
    finally:
        for process in started:
            process.kill()
    for process, (_, errors) in zip(started, results):
        assert process.returncode == 0, errors
    for settings in (SETTINGS, SLIDE):
        alone = evaluate.count(broken_model(np.nan), VARIABLES, settings, Samples(SIZES))
        assert alone.nonfinite_pixels > 0
        for output, _ in results:
            assert f"{settings.mode} {alone.confusion.tolist()} {alone.nonfinite_pixels}" in output


def test_one_process_sums_nothing():
    counts = np.array([2**40], np.int64)
    assert evaluate.sum_over_processes(counts) is counts


# --- Workdirs ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def workdir(model, samples, tmp_path, monkeypatch):
    """A workdir whose best step is 7; `loaded` lists what evaluation loads."""
    from jaxseg.data import pipeline

    config, loaded = make_config(), []
    config.precision = "float32"
    monkeypatch.setattr(
        evaluate.inference,
        "load_model",
        lambda path, config_: loaded.append(path) or (model, VARIABLES, config),
    )
    monkeypatch.setattr(pipeline, "eval_samples", lambda config_: samples)
    monkeypatch.setattr(
        checkpoint, "find_step", lambda path: int(path.name) if path.name.isdigit() else 7
    )
    (tmp_path / "config.json").write_text("{}")
    return SimpleNamespace(path=tmp_path, loaded=loaded)


def test_a_workdirs_evaluation_lies_in_it_and_is_of_the_step_chosen(workdir):
    (workdir.path / "metrics.json").write_text('{"step": 3, "training": {"seconds": 5.0}}')
    summary = evaluate.evaluate_checkpoint(workdir.path, pictures=2)
    assert json.loads((workdir.path / "metrics.json").read_text()) == summary
    assert sorted(path.name for path in (workdir.path / "pictures").iterdir()) == [
        "sample0.png",
        "sample6.png",
    ]
    assert workdir.loaded == [workdir.path / "checkpoints/7"] and summary["step"] == 7
    assert summary["training"] == {"seconds": 5.0} and summary["nonfinite_pixels"] == 0
    assert (
        summary["evaluated"]["name"] == "shapes"
        and summary["evaluated"]["split"] == "val"
        and summary["evaluated"]["scales"] == [1.0]
    )


def test_the_evaluation_of_one_step_leaves_its_checkpoint_alone(workdir):
    step = workdir.path / "checkpoints" / "3"
    step.mkdir(parents=True)
    summary = evaluate.evaluate_checkpoint(step, pictures=1)
    folder = workdir.path / "evaluations" / "3"
    assert (
        evaluate.evaluation_folder(step) == folder
        and evaluate.evaluation_folder(workdir.path) == workdir.path
    )
    assert not list(step.iterdir()) and not (workdir.path / "metrics.json").exists()
    assert (
        json.loads((folder / "metrics.json").read_text()) == summary
        and summary["step"] == 3
        and workdir.loaded == [step]
    )
    assert len(list((folder / "pictures").iterdir())) == 1


def test_evaluations_at_once_do_not_meet(workdir):
    """Each of several finds whole files, and leaves no others behind."""
    with ThreadPoolExecutor(3) as pool:
        found = list(
            pool.map(lambda _: evaluate.evaluate_checkpoint(workdir.path, pictures=3), range(3))
        )
    assert json.loads((workdir.path / "metrics.json").read_text()) in found
    assert len(list((workdir.path / "pictures").iterdir())) == 3
    assert not list(workdir.path.rglob(".part-*"))
