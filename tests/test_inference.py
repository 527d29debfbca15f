"""Inference: windows, scales and mirrored copies add up, sizes come out right, wrong images are refused."""

import json
import logging
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from jaxseg import inference
from jaxseg.inference import Predictor, Settings, predict, predict_slide, slide, window_starts
from jaxseg.predict import InputError, predict_files

PLAIN = Settings(mean=(0.0,), std=(1.0,))


def toy(function):
    """A model without variables whose logits are function(images)."""
    return SimpleNamespace(apply=lambda variables, images, train: (function(images), {}))


def random_image(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize("length, crop, stride", [(10, 4, 3), (1025, 769, 513), (2049, 769, 513), (7, 9, 3), (9, 9, 9)])
def test_windows_cover_and_stay_inside(length, crop, stride):
    starts = window_starts(length, crop, stride)
    seen = np.zeros(length, int)
    for start in starts:
        assert start >= 0 and (start + crop <= length or length < crop)
        seen[start : start + crop] += 1
    assert seen.min() >= 1
    assert len(starts) == max(length - crop + stride - 1, 0) // stride + 1


def test_published_number_of_windows():
    assert len(window_starts(1025, 769, 513)) * len(window_starts(2049, 769, 513)) == 2 * 4


@pytest.mark.parametrize("batch", [1, 3])
def test_slide_of_the_identity_is_the_identity(batch):
    """Images larger than, equal to and smaller than the window, in one stream, with one shape of call per window size."""
    images = [random_image(*size, 3, seed=i) for i, size in enumerate([(20, 30), (8, 12), (6, 30), (6, 9), (25, 13)])]
    shapes = set()

    def call(windows):
        shapes.add(windows.shape)
        return jnp.asarray(windows, jnp.float32)

    results = list(slide(call, images, (8, 12), (5, 7), batch))
    assert len(results) == len(images)
    for image, result in zip(images, results):
        np.testing.assert_allclose(result, image, rtol=1e-6)
    assert shapes == {(batch, 8, 12, 3), (batch, 6, 12, 3), (batch, 6, 9, 3)}


def test_slide_averages_overlaps():
    """Two windows that share columns 4..7: each says its own number, the overlap says the mean."""
    calls = iter([1.0, 3.0])
    result = next(slide(lambda w: jnp.full((1, 4, 8, 1), next(calls)), [np.zeros((4, 12, 1), np.uint8)], (4, 8), (4, 4)))
    np.testing.assert_allclose(result[0, :, 0], [1.0] * 4 + [2.0] * 4 + [3.0] * 4)


def test_single_view_gives_resized_logits():
    image = random_image(1, 6, 8, 1)
    logits = predict(toy(lambda x: x * 2), PLAIN, {}, image, (6, 8))
    np.testing.assert_allclose(logits, image * 2.0)
    assert predict(toy(lambda x: x), PLAIN, {}, image, (9, 5)).shape == (1, 9, 5, 1)


def two_classes(images):
    """Symmetric toy: every pixel's logits depend on that pixel alone."""
    return jnp.concatenate([images / 100, 1 - images / 100], -1)


def test_flip_of_a_symmetric_toy_changes_nothing():
    image = random_image(2, 8, 10, 1)
    plain = predict(toy(two_classes), PLAIN, {}, image, (8, 10))
    flipped = predict(toy(two_classes), PLAIN._replace(flip=True), {}, image, (8, 10))
    np.testing.assert_allclose(flipped, jnp.exp(plain) / jnp.exp(plain).sum(-1, keepdims=True), atol=1e-6)


def test_flip_averages_a_model_that_sees_left_from_right():
    def sided(images):
        left = jnp.broadcast_to(jnp.arange(images.shape[2])[None, None, :, None], images.shape) * 1.0
        return jnp.concatenate([left, -left], -1)

    result = predict(toy(sided), PLAIN._replace(flip=True), {}, np.zeros((1, 4, 6, 1), np.uint8), (4, 6))
    np.testing.assert_allclose(result, result[:, :, ::-1], atol=1e-6)
    assert np.ptp(np.asarray(result[0, 0, :, 0])) > 0.01


def test_scales_of_a_flat_image_change_nothing():
    image = np.full((1, 8, 8, 1), 70, np.uint8)
    several = predict(toy(two_classes), PLAIN._replace(scales=(0.5, 1.0), flip=True), {}, image, (8, 8))
    expected = np.exp([0.7, 0.3]) / np.exp([0.7, 0.3]).sum()
    np.testing.assert_allclose(several, np.broadcast_to(expected, (1, 8, 8, 2)), atol=1e-5)


@pytest.mark.parametrize("views", [dict(), dict(scales=(0.5, 1.0), flip=True)])
def test_slide_with_one_large_window_equals_whole(views):
    image, size = random_image(10, 14, 1), (13, 11)
    settings = PLAIN._replace(**views, crop_size=(64, 64), stride=(32, 32), batch_size=2)
    whole = predict(toy(two_classes), settings, {}, image[None], size)[0]
    [sliding] = predict_slide(lambda w: inference.network(toy(two_classes), settings, {}, w), settings, [(image, size)])
    np.testing.assert_allclose(sliding, whole, atol=1e-5)


def test_slide_keeps_several_images_apart():
    settings = PLAIN._replace(crop_size=(8, 8), stride=(5, 5), flip=True, batch_size=3)
    items = [(random_image(*size, 1, seed=i), size) for i, size in enumerate([(9, 12), (12, 9), (8, 8)])]
    for (image, size), scores in zip(items, predict_slide(lambda w: two_classes(w * 1.0), settings, items)):
        np.testing.assert_allclose(scores, predict(toy(two_classes), settings, {}, image[None], size)[0], atol=1e-5)


def make_config(**run):
    defaults = dict(mode="whole", crop_size=(0, 0), stride=(0, 0), scales=(1.0,), flip=False, batch_size=1, resize=(0, 0))
    data = dict(name="shapes", root="", source="files", channels=3, dtype="uint8", image_mean=(100.0, 100.0, 100.0), image_std=(50.0, 50.0, 50.0))
    return ConfigDict({"precision": "float32", "model": {"align_corners": False}, "dataset": data, "eval": defaults | run})


def test_overriding_replaces_data_and_eval_only():
    trained, other = make_config(), make_config(flip=True)
    other.dataset.image_mean, other.model.align_corners = (0.0, 0.0, 0.0), True
    trained.lock()
    merged = inference.override_data(trained, other.lock())
    assert merged.eval.flip and not merged.model.align_corners and not trained.eval.flip
    assert merged.dataset.image_mean == trained.dataset.image_mean != other.dataset.image_mean


def test_an_empty_root_is_that_of_the_run_if_the_data_set_is_the_same():
    trained, other = make_config(), make_config()
    trained.dataset.update(dict(name="folder", root="photos", source="tfds"))
    other.dataset.name = "folder"
    merged = inference.override_data(trained, other)
    assert merged.dataset.root == "photos" and merged.dataset.source == "tfds" and other.dataset.root == ""
    other.dataset.name = "cityscapes"
    assert inference.override_data(trained, other).dataset.root == ""


def make_predictor(**run):
    """Its class is the brightest channel."""
    names, colors = ("red", "green", "blue"), ((255, 0, 0), (0, 255, 0), (0, 0, 255))
    return Predictor(toy(lambda x: x), {}, make_config(**run), classes=names, palette=colors)


@pytest.mark.parametrize("run", [dict(), dict(mode="slide", crop_size=(8, 8), stride=(5, 5)), dict(flip=True)])
def test_predictor(run):
    segment = make_predictor(**run)
    images = [random_image(11, 13, 3), random_image(6, 20, 3)]
    masks = segment(images)
    for image, mask in zip(images, masks):
        assert mask.shape == image.shape[:2] and mask.dtype == np.int32
        np.testing.assert_array_equal(mask, image.argmax(-1))
    probabilities = segment.probabilities(images[0])
    assert probabilities.dtype == np.float32 and probabilities.shape == (11, 13, 3)
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)
    assert segment.classes == ("red", "green", "blue")


def test_predictor_resizes_as_evaluation_and_returns_the_photos_size():
    segment = make_predictor(resize=(20, 10))
    shapes = []
    segment.model.apply = lambda variables, images, train: (shapes.append(images.shape), (images, {}))[1]
    assert segment(random_image(40, 60, 3)).shape == (40, 60)
    assert shapes == [(1, 10, 15, 3)]


@pytest.mark.parametrize(
    "image, error, message",
    [
        ("photo.jpg", TypeError, "numpy array"),
        (np.zeros((8, 8, 3), np.float32), TypeError, "uint8"),
        (np.zeros((8, 8), np.uint8), ValueError, r"\[H, W, 3\]"),
        (np.zeros((8, 8, 4), np.uint8), ValueError, r"\[H, W, 3\]"),
        (np.zeros((2, 8, 8, 3), np.uint8), ValueError, "as a list"),
        (np.zeros((0, 8, 3), np.uint8), ValueError, "shape"),
    ],
)
def test_wrong_images_are_refused(image, error, message):
    with pytest.raises(error, match=message):
        make_predictor()(image)


@pytest.mark.parametrize(
    "run, message",
    [(dict(mode="tiles"), "tiles"), (dict(mode="slide"), "stride"), (dict(scales=()), "scales"), (dict(batch_size=0), "1 or more")],
)
def test_wrong_settings_are_refused(run, message):
    with pytest.raises(ValueError, match=message):
        inference.make_settings(make_config(**run))


def test_new_shapes_are_logged_once_and_bounded(caplog, monkeypatch):
    monkeypatch.setattr(inference, "MAX_PROGRAMS", 2)
    made = []
    program = inference.logged(lambda: made.append(1) or (lambda variables, x: x), "test")
    with caplog.at_level(logging.INFO, logger="jaxseg.inference"):
        for n in (1, 1, 2, 2, 3):
            program({}, np.zeros(n))
    assert len(caplog.records) == 3 and len(made) == 2


def test_dataset_facts_of_a_workdir_and_of_a_step(tmp_path):
    (tmp_path / "dataset.json").write_text(json.dumps({"classes": ["a"], "palette": [[0, 0, 0]]}))
    step = tmp_path / "checkpoints" / "10"
    step.mkdir(parents=True)
    assert inference.read_dataset_facts(step) == inference.read_dataset_facts(tmp_path)
    with pytest.raises(ValueError, match="dataset.json"):
        inference.read_dataset_facts(tmp_path / "a" / "b" / "c" / "d")


def write_photos(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        Image.fromarray(random_image(10, 14, 3, seed=i)).save(folder / name)


def test_files_in_files_out(tmp_path):
    write_photos(tmp_path / "in", "a.png", "b.PNG")
    (tmp_path / "in" / "notes.txt").write_text("not an image")
    written = predict_files(make_predictor(), tmp_path / "in", tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["a.png", "a_overlay.png", "b.png", "b_overlay.png"]
    assert [path.name for path in written] == ["a.png", "b.png"]
    with Image.open(tmp_path / "in" / "a.png") as photo, Image.open(tmp_path / "out" / "a.png") as label:
        np.testing.assert_array_equal(np.asarray(label), np.asarray(photo).argmax(-1))
    assert predict_files(make_predictor(), tmp_path / "in" / "a.png", tmp_path / "one") == [tmp_path / "one" / "a.png"]


def test_paths_that_cannot_be_used(tmp_path):
    segment = make_predictor()
    with pytest.raises(InputError, match="no such file or folder.*nothing"):
        predict_files(segment, tmp_path / "nothing", tmp_path / "out")
    with pytest.raises(InputError, match="no images in"):
        predict_files(segment, tmp_path, tmp_path / "out")
    write_photos(tmp_path / "in", "a.png")
    with pytest.raises(InputError, match="overwrite"):
        predict_files(segment, tmp_path / "in", tmp_path / "in")
    write_photos(tmp_path / "twice", "a.png", "a.jpg")
    with pytest.raises(InputError, match="both be written as a.png"):
        predict_files(segment, tmp_path / "twice", tmp_path / "out")
    (tmp_path / "in" / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match="broken.jpg"):
        predict_files(segment, tmp_path / "in", tmp_path / "out")
