"""Evaluation: every image once, whatever the devices, batches and sizes; the door writes what it promises."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxseg import checkpoint, evaluate, metrics, presets
from jaxseg.inference import Settings

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
            name="toy", classes=("red", "green", "blue"), palette=((255, 0, 0), (0, 255, 0), (0, 0, 255))
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
    [SETTINGS, SETTINGS._replace(batch_size=2), SLIDE, SLIDE._replace(batch_size=3, flip=True, scales=(1.0, 1.5))],
    ids=["whole", "whole-batch2", "slide", "slide-views"],
)
def test_four_devices_count_as_one(model, samples, settings):
    assert len(jax.local_devices()) == 4
    one = evaluate.count(model, VARIABLES, settings, samples, devices=jax.local_devices()[:1])
    four = evaluate.count(model, VARIABLES, settings, samples)
    np.testing.assert_array_equal(one, four)
    assert one.sum() == sum(np.sum(sample["label"] != 255) for sample in samples)


def test_counts_equal_the_predictors(model, samples):
    """An identity model on images that are not resized: the prediction is known without the library."""
    chosen = Samples([((9, 9), (9, 9))] * 3)
    expected = np.zeros((3, 3), np.int64)
    for sample in chosen:
        expected += np.asarray(metrics.confusion_matrix(sample["image"].argmax(-1), sample["label"], 3))
    for settings in (SETTINGS, SLIDE):
        np.testing.assert_array_equal(evaluate.count(model, VARIABLES, settings, chosen), expected)


@pytest.mark.parametrize("settings", [SETTINGS, SLIDE], ids=["whole", "slide"])
def test_every_image_is_seen_once(model, samples, settings):
    seen = []
    evaluate.count(model, VARIABLES, settings, samples, look=lambda i, sample, ids: seen.append((i, ids().shape)))
    assert sorted(seen) == [(i, sample["label"].shape) for i, sample in enumerate(samples)]


def test_samples_without_shape_in_any_order(model, samples):
    class Plain(list):
        spec = samples.spec

    settings = SETTINGS._replace(batch_size=2)
    counts = evaluate.count(model, VARIABLES, settings, Plain(samples[::-1]))
    np.testing.assert_array_equal(counts, evaluate.count(model, VARIABLES, settings, samples))


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
    data = presets.DATASET | dict(name="shapes", image_mean=(0.0,) * 3, image_std=(1.0,) * 3)
    return ConfigDict({"model": {"align_corners": False, "num_classes": num_classes}, "dataset": data, "eval": presets.EVALUATION})


def test_evaluate_returns_metrics_and_pictures(model, samples, tmp_path):
    drawn = {}
    summary = evaluate.evaluate(model, VARIABLES, make_config(), samples, pictures=3, save_picture=drawn.__setitem__)
    assert sorted(drawn) == ["sample0", "sample3", "sample6"]
    assert all(p.dtype == np.uint8 and p.ndim == 3 for p in drawn.values())
    assert summary["images"] == 7 and summary["images_per_second"] > 0
    counts = evaluate.count(model, VARIABLES, SETTINGS._replace(mean=(0.0,) * 3, std=(1.0,) * 3), samples)
    assert summary["mIoU"] == metrics.summarize(counts, samples.spec.classes)["mIoU"]
    json.dumps(summary, allow_nan=False)


def test_evaluate_refuses(model, samples):
    with pytest.raises(ValueError, match="19 classes"):
        evaluate.evaluate(model, VARIABLES, make_config(19), samples)
    with pytest.raises(ValueError, match="no samples"):
        evaluate.evaluate(model, VARIABLES, make_config(), Samples([]))


def test_digits_of_large_sums():
    """What processes send each other holds any int64 count (here: by one process, so by hand)."""
    counts = np.array([0, 5, 2**31 + 3, 3_000_000_000_000], np.int64)
    high, low = counts >> 31, counts & (2**31 - 1)
    np.testing.assert_array_equal((high.astype(np.int32).astype(np.int64) << 31) + low.astype(np.int32), counts)
    assert evaluate.sum_over_processes(counts) is counts


def test_checkpoint_door_writes_metrics_and_pictures(model, samples, tmp_path, monkeypatch):
    from jaxseg.data import pipeline

    config = make_config()
    config.precision = "float32"
    monkeypatch.setattr(evaluate.inference, "load_model", lambda path, config_: (model, VARIABLES, config))
    monkeypatch.setattr(evaluate.cache, "enable_compilation_cache", lambda: "")
    monkeypatch.setattr(pipeline, "eval_samples", lambda config_: samples)
    monkeypatch.setattr(checkpoint, "find_step", lambda path: 7)
    (tmp_path / "metrics.json").write_text('{"step": 3, "training": {"seconds": 5.0}}')
    summary = evaluate.evaluate_checkpoint(tmp_path, pictures=2)
    assert json.loads((tmp_path / "metrics.json").read_text()) == summary
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["sample0.png", "sample6.png"]
    assert summary["step"] == 7 and summary["training"] == {"seconds": 5.0}
    assert summary["evaluated"]["name"] == "shapes" and summary["evaluated"]["split"] == "val" and summary["evaluated"]["scales"] == [1.0]
