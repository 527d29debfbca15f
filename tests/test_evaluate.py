"""Evaluation: every image once, on any number of devices; a workdir gets what the docs promise."""

import gc
import json
import logging
import os
import socket
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tifffile
from helpers.data_helpers import make_folder
from helpers.predictor_helpers import make_experiment, make_predictor

from jaxseg import evaluation, metrics
from jaxseg.data import pipeline
from jaxseg.data.catalog import load_spec
from jaxseg.errors import DataError
from jaxseg.evaluation import compute_confusion, counting, evaluate, programs, workdir
from jaxseg.inference.settings import TestSettings, make_settings

SETTINGS = TestSettings(mean=(128.0,) * 3, std=(64.0,) * 3)
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


class Model:
    """A model whose `apply` is a function of variables and images."""

    def __init__(self, function):
        self.function = function

    def apply(self, variables, images, train):
        return self.function(variables, images), {}


@pytest.fixture(scope="module")
def model():
    """Logits are the normalised image times a variable: the brightest channel is the class."""
    return Model(lambda variables, images: images * variables["scale"])


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
    one = compute_confusion(model, VARIABLES, settings, samples, devices=jax.local_devices()[:1])
    four = compute_confusion(model, VARIABLES, settings, samples)
    np.testing.assert_array_equal(one.confusion, four.confusion)
    assert one.nonfinite_pixels == four.nonfinite_pixels == 0
    assert one.confusion.sum() == sum(np.sum(sample["label"] != 255) for sample in samples)


def test_counts_equal_the_predictors(model, samples):
    """An identity model on images of their own size: the prediction is the brightest channel."""
    chosen = Samples([((9, 9), (9, 9))] * 3)
    expected = np.zeros((3, 3), np.int64)
    for sample in chosen:
        expected += np.asarray(
            metrics.confusion_matrix(sample["image"].argmax(-1), sample["label"], 3)
        )
    for settings in (SETTINGS, SLIDE):
        np.testing.assert_array_equal(
            compute_confusion(model, VARIABLES, settings, chosen).confusion, expected
        )


@pytest.mark.parametrize("settings", [SETTINGS, SLIDE], ids=["whole", "slide"])
def test_every_image_is_seen_once(model, samples, settings):
    seen = []
    compute_confusion(
        model,
        VARIABLES,
        settings,
        samples,
        on_prediction=lambda i, sample, ids: seen.append((i, ids().shape)),
    )
    assert sorted(seen) == [(i, sample["label"].shape) for i, sample in enumerate(samples)]


def test_samples_without_shape_in_any_order(model, samples):
    class Plain(list):
        spec = samples.spec

    settings = SETTINGS._replace(batch_size=2)
    counts = compute_confusion(model, VARIABLES, settings, Plain(samples[::-1]))
    np.testing.assert_array_equal(
        counts.confusion, compute_confusion(model, VARIABLES, settings, samples).confusion
    )


def test_second_evaluation_compiles_nothing(samples):
    traced = []
    model = Model(lambda variables, images: traced.append(1) or images)
    for _ in range(2):
        compute_confusion(model, VARIABLES, SETTINGS, samples)
    assert len(traced) == 2  # one per size
    traced.clear()
    for _ in range(2):
        compute_confusion(model, VARIABLES, SLIDE, samples)
    assert len(traced) == 1  # one window size


@pytest.mark.parametrize("settings", [SETTINGS, SLIDE], ids=["whole", "slide"])
def test_compiled_programs_do_not_keep_a_model_alive(samples, settings):
    model = Model(lambda variables, images: images)
    compute_confusion(model, VARIABLES, settings, samples)
    program = programs.compiled_program(model, settings, tuple(jax.local_devices()))
    alive = [weakref.ref(model), weakref.ref(program)]
    del model, program
    gc.collect()
    assert [reference() for reference in alive] == [None, None]


def test_a_model_without_weak_references_is_evaluated_too(model, samples):
    plain = SimpleNamespace(apply=model.apply)
    found = compute_confusion(plain, VARIABLES, SETTINGS, samples).confusion
    np.testing.assert_array_equal(
        found, compute_confusion(model, VARIABLES, SETTINGS, samples).confusion
    )


def test_label_that_is_no_class(model):
    wrong = Samples([((8, 8), (8, 8))] * 2)
    wrong[1]["label"][0, 0] = 7
    with pytest.raises(DataError) as error:
        compute_confusion(model, VARIABLES, SETTINGS, wrong)
    assert error.value.file == "sample1" and "7" in error.value.problem


def test_unreadable_sample_is_reported(model, samples):
    class Broken(Samples):
        def __getitem__(self, i):
            raise OSError("cannot read b.png")

    with pytest.raises(OSError, match=r"b\.png"):
        compute_confusion(model, VARIABLES, SETTINGS, Broken([((8, 8), (8, 8))]))


def test_evaluate_returns_metrics_and_pictures(model, samples):
    drawn = {}
    summary = evaluate(
        model,
        VARIABLES,
        SETTINGS,
        samples,
        num_classes=3,
        pictures=3,
        save_picture=drawn.__setitem__,
    )
    assert sorted(drawn) == ["sample0", "sample3", "sample6"]
    assert all(p.dtype == np.uint8 and p.ndim == 3 for p in drawn.values())
    assert summary["images"] == 7 and summary["images_per_second"] > 0
    counts = compute_confusion(model, VARIABLES, SETTINGS, samples)
    assert summary["mIoU"] == metrics.summarize(counts.confusion, samples.spec.classes)["mIoU"]
    assert summary["nonfinite_pixels"] == 0
    json.dumps(summary, allow_nan=False)


@pytest.mark.parametrize("settings", [SETTINGS, SLIDE], ids=["whole", "slide"])
def test_a_model_with_another_number_of_classes_is_refused(samples, settings):
    two = Model(lambda variables, images: images[..., :2])
    for arguments in (dict(num_classes=2), dict()):
        with pytest.raises(DataError) as error:
            evaluate(two, VARIABLES, settings, samples, **arguments)
        assert error.value.field == "eval.dataset" and "2 classes" in error.value.problem


def test_an_empty_split_is_refused(model):
    with pytest.raises(DataError) as error:
        evaluate(model, VARIABLES, SETTINGS, Samples([]))
    assert error.value.field == "dataset.val_split"


# --- Test-time scales -----------------------------------------------------------------------------


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
    images_config = dict(
        name="folder", root=str(root), dtype=dtype, image_mean=(0.0,) * 3, image_std=(1.0,) * 3
    )
    experiment = make_experiment(dataset=images_config, scales=scales, resize=resize, flip=True)
    samples = pipeline.eval_samples(
        experiment.dataset, experiment.eval, load_spec(experiment.dataset)
    )
    sizes = [(10, 12), (20, 24), (35, 42)] if resize == (0, 0) else [(6, 7), (13, 16), (22, 26)]
    for image, sample in zip(images, samples):
        for size, view in zip(sizes, sample["views"]):
            np.testing.assert_array_equal(
                view, cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
            )
            assert view.dtype == dtype
        assert sample["image"] is sample["views"][1] and sample["label"].shape == (20, 24)
    # Evaluation and prediction agree.
    identity = Model(lambda variables, images: images / 60000)
    counts = compute_confusion(identity, {}, make_settings(experiment), samples)
    segment = make_predictor(experiment, identity)
    expected = sum(
        np.asarray(metrics.confusion_matrix(segment(image), sample["label"], 3))
        for image, sample in zip(images, samples)
    )
    np.testing.assert_array_equal(counts.confusion, expected)


# --- Scores that are not finite -------------------------------------------------------------------


def broken_model(value):
    """The logits are the image; red becomes `value` where it is above 1.9, normalised (250)."""

    def apply(variables, images):
        return images.at[..., 0].set(jnp.where(images[..., 0] > 1.9, value, images[..., 0]))

    return Model(apply)


@pytest.mark.parametrize(
    "settings, value",
    [
        (SETTINGS, np.nan),
        (SETTINGS._replace(batch_size=2), np.inf),
        (SETTINGS._replace(flip=True), -np.inf),
        (SLIDE, np.inf),
        (SETTINGS._replace(scales=(1.0, 2.0)), -np.inf),
        (SLIDE._replace(flip=True, batch_size=3), -np.inf),
    ],
)
def test_scores_that_are_not_finite_are_counted(settings, value, caplog):
    """4 pixels of the 6th of 6 images, on four devices; copies that fill the batch do not count."""
    chosen = Samples([((9, 9), (9, 9))] * 6)
    for sample in chosen:
        sample["image"][..., 0] = np.minimum(sample["image"][..., 0], 200)
    chosen[5]["image"][3:5, 2:4, 0] = 255
    several = len(settings.scales) > 1  # twice as large, 4 pixels blend into their neighbours
    with caplog.at_level(logging.WARNING, logger="jaxseg.evaluation.counting"):
        found = compute_confusion(broken_model(value), VARIABLES, settings, chosen).nonfinite_pixels
    assert 4 <= found <= 81 if several else found == 4
    [record] = caplog.records
    assert "sample5" in record.getMessage() and f"{found} pixels" in record.getMessage()


def test_ignored_pixels_count_as_not_finite_too():
    chosen = Samples([((9, 9), (9, 9))])
    chosen[0]["image"][:], chosen[0]["label"][:] = 255, 255
    counts = compute_confusion(broken_model(np.nan), VARIABLES, SETTINGS, chosen)
    assert counts.nonfinite_pixels == 81 and counts.confusion.sum() == 0


# --- Several processes ----------------------------------------------------------------------------

PROCESS = """
import sys
import jax
import numpy as np

rank, port = int(sys.argv[1]), sys.argv[2]
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(
    f"127.0.0.1:{port}", num_processes=2, process_id=rank, initialization_timeout=60
)
from jaxseg.evaluation import compute_confusion, counting
from test_evaluate import SETTINGS, SIZES, SLIDE, VARIABLES, Samples, broken_model

counts = np.array([0, 1, 2**31 - 1, 2**31 + 3, 2**40 + 12345, 2**61 - 1], np.int64)
total = counting.sum_over_processes(counts + rank)
assert total.dtype == np.int64, total.dtype
assert total.tolist() == (2 * counts + 1).tolist(), total
for settings in (SETTINGS, SLIDE):
    found = compute_confusion(broken_model(np.nan), VARIABLES, settings, Samples(SIZES))
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
        alone = compute_confusion(broken_model(np.nan), VARIABLES, settings, Samples(SIZES))
        assert alone.nonfinite_pixels > 0
        for output, _ in results:
            assert f"{settings.mode} {alone.confusion.tolist()} {alone.nonfinite_pixels}" in output


def test_one_process_sums_nothing():
    counts = np.array([2**40], np.int64)
    assert counting.sum_over_processes(counts) is counts


def test_sums_of_three_processes_are_exact_where_jax_has_32_bits(monkeypatch):
    """Three processes with equal counts; the gather refuses what JAX cannot move in 32 bits."""
    counts = np.array([0, 1, 2**31 - 1, 2**31 + 3, 2**40 + 12345, 2**61 - 1], np.int64)

    def gather(digits):
        assert digits.dtype == np.int32 and digits.min() >= 0
        return jnp.stack([jnp.asarray(digits)] * 3)

    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(counting.multihost_utils, "process_allgather", gather)
    total = counting.sum_over_processes(counts)
    assert total.dtype == np.int64 and total.tolist() == (3 * counts).tolist()


# --- Workdirs -------------------------------------------------------------------------------------


@pytest.fixture
def run(model, samples, tmp_path, monkeypatch):
    """A workdir whose best step is 7; `loaded` lists what evaluation loads."""
    loaded = []

    def load_model(path, config):
        loaded.append(path)
        return model, VARIABLES, make_experiment()

    monkeypatch.setattr(workdir, "load_model", load_model)
    monkeypatch.setattr(pipeline, "eval_samples", lambda *arguments: samples)
    monkeypatch.setattr(
        workdir, "find_step", lambda path: int(path.name) if path.name.isdigit() else 7
    )
    (tmp_path / "config.json").write_text("{}")
    return SimpleNamespace(path=tmp_path, loaded=loaded)


def test_a_workdirs_evaluation_lies_in_it_and_is_of_the_step_chosen(run):
    (run.path / "metrics.json").write_text('{"step": 3, "training": {"seconds": 5.0}}')
    summary = evaluation.evaluate_checkpoint(run.path, pictures=2)
    assert json.loads((run.path / "metrics.json").read_text()) == summary
    assert sorted(path.name for path in (run.path / "pictures").iterdir()) == [
        "sample0.png",
        "sample6.png",
    ]
    assert run.loaded == [run.path / "checkpoints/7"] and summary["step"] == 7
    assert summary["training"] == {"seconds": 5.0} and summary["nonfinite_pixels"] == 0
    assert (
        summary["evaluated"]["name"] == "shapes"
        and summary["evaluated"]["split"] == "val"
        and summary["evaluated"]["scales"] == [1.0]
    )


def test_the_evaluation_of_one_step_leaves_its_checkpoint_alone(run):
    step = run.path / "checkpoints" / "3"
    step.mkdir(parents=True)
    summary = evaluation.evaluate_checkpoint(step, pictures=1)
    folder = run.path / "evaluations" / "3"
    assert (
        evaluation.evaluation_folder(step) == folder
        and evaluation.evaluation_folder(run.path) == run.path
    )
    assert not list(step.iterdir()) and not (run.path / "metrics.json").exists()
    assert (
        json.loads((folder / "metrics.json").read_text()) == summary
        and summary["step"] == 3
        and run.loaded == [step]
    )
    assert len(list((folder / "pictures").iterdir())) == 1


def test_evaluations_at_once_do_not_meet(run):
    """Each of several finds whole files, and leaves no others behind."""
    with ThreadPoolExecutor(3) as pool:
        found = list(
            pool.map(lambda _: evaluation.evaluate_checkpoint(run.path, pictures=3), range(3))
        )
    assert json.loads((run.path / "metrics.json").read_text()) in found
    assert len(list((run.path / "pictures").iterdir())) == 3
    assert not list(run.path.rglob(".part-*"))
