"""Inference: windows, scales and mirror images add up, and sizes come out right."""

import json
import logging

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.predictor_helpers import make_experiment, make_predictor, random_image, toy

import jaxseg
from jaxseg import convert
from jaxseg.config import get_experiment, override_trained
from jaxseg.data.augment.transforms import resize_image, scaled_views
from jaxseg.errors import CheckpointError, ConfigError, NonFiniteError, WeightsError
from jaxseg.experiments import load_experiment
from jaxseg.inference.predictor import Predictor
from jaxseg.inference.programs import BoundedJitCache
from jaxseg.inference.settings import TestSettings, make_settings
from jaxseg.inference.slide import predict_slide, slide, window_starts
from jaxseg.inference.whole import forward, predict
from jaxseg.models import create_model, init_variables
from jaxseg.ops import resize_bilinear
from jaxseg.workdir import load_dataset_metadata

PLAIN = TestSettings(mean=(0.0,), std=(1.0,))


@pytest.mark.parametrize(
    "length, crop, stride", [(10, 4, 3), (1025, 769, 513), (2049, 769, 513), (7, 9, 3), (9, 9, 9)]
)
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
    """Images larger than, equal to and smaller than the window; one call shape per window size."""
    images = [
        random_image(*size, 3, seed=i)
        for i, size in enumerate([(20, 30), (8, 12), (6, 30), (6, 9), (25, 13)])
    ]
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
    result = next(
        slide(
            lambda w: jnp.full((1, 4, 8, 1), next(calls)),
            [np.zeros((4, 12, 1), np.uint8)],
            (4, 8),
            (4, 4),
        )
    )
    np.testing.assert_allclose(result[0, :, 0], [1.0] * 4 + [2.0] * 4 + [3.0] * 4)


def test_single_view_gives_resized_logits():
    image = random_image(1, 6, 8, 1)
    logits = predict(toy(lambda x: x * 2), PLAIN, {}, [image], (6, 8))
    np.testing.assert_allclose(logits, image * 2.0)
    assert predict(toy(lambda x: x), PLAIN, {}, [image], (9, 5)).shape == (1, 9, 5, 1)


def two_classes(images):
    """Symmetric toy: every pixel's logits depend on that pixel alone."""
    return jnp.concatenate([images / 100, 1 - images / 100], -1)


def test_flip_of_a_symmetric_toy_changes_nothing():
    image = random_image(2, 8, 10, 1)
    plain = predict(toy(two_classes), PLAIN, {}, [image], (8, 10))
    flipped = predict(toy(two_classes), PLAIN._replace(flip=True), {}, [image], (8, 10))
    np.testing.assert_allclose(
        flipped, jnp.exp(plain) / jnp.exp(plain).sum(-1, keepdims=True), atol=1e-6
    )


def test_flip_averages_a_model_that_sees_left_from_right():
    def sided(images):
        left = (
            jnp.broadcast_to(jnp.arange(images.shape[2])[None, None, :, None], images.shape) * 1.0
        )
        return jnp.concatenate([left, -left], -1)

    result = predict(
        toy(sided), PLAIN._replace(flip=True), {}, [np.zeros((1, 4, 6, 1), np.uint8)], (4, 6)
    )
    np.testing.assert_allclose(result, result[:, :, ::-1], atol=1e-6)
    assert np.ptp(np.asarray(result[0, 0, :, 0])) > 0.01


def test_scales_of_a_flat_image_change_nothing():
    images = [np.full((1, side, side, 1), 70, np.uint8) for side in (4, 8)]
    several = predict(
        toy(two_classes), PLAIN._replace(scales=(0.5, 1.0), flip=True), {}, images, (8, 8)
    )
    expected = np.exp([0.7, 0.3]) / np.exp([0.7, 0.3]).sum()
    np.testing.assert_allclose(several, np.broadcast_to(expected, (1, 8, 8, 2)), atol=1e-5)


@pytest.mark.parametrize("views", [dict(), dict(scales=(0.5, 1.0), flip=True)])
def test_slide_with_one_large_window_equals_whole(views):
    image, size = random_image(10, 14, 1), (13, 11)
    settings = PLAIN._replace(**views, crop_size=(64, 64), stride=(32, 32), batch_size=2)
    images = scaled_views(image, (0, 0), settings.scales)
    whole = predict(toy(two_classes), settings, {}, [view[None] for view in images], size)[0]
    [sliding] = predict_slide(
        lambda w: forward(toy(two_classes), settings, {}, w), settings, [(images, size)]
    )
    np.testing.assert_allclose(sliding, whole, atol=1e-5)


def test_slide_keeps_several_images_apart():
    settings = PLAIN._replace(crop_size=(8, 8), stride=(5, 5), flip=True, batch_size=3)
    items = [
        ([random_image(*size, 1, seed=i)], size)
        for i, size in enumerate([(9, 12), (12, 9), (8, 8)])
    ]
    for ([image], size), scores in zip(
        items, predict_slide(lambda w: two_classes(w * 1.0), settings, items)
    ):
        np.testing.assert_allclose(
            scores, predict(toy(two_classes), settings, {}, [image[None]], size)[0], atol=1e-5
        )


def test_overriding_replaces_data_and_eval_only():
    trained = make_experiment()
    other = make_experiment(dataset=dict(image_mean=(0.0,) * 3), num_classes=5, flip=True)
    merged = override_trained(trained, other)
    assert merged.eval.flip and not trained.eval.flip and merged.model == trained.model
    assert merged.dataset.image_mean == trained.dataset.image_mean != other.dataset.image_mean


def test_an_empty_root_is_that_of_the_run_if_the_data_set_is_the_same():
    trained = make_experiment(dataset=dict(name="folder", root="photos", source="tfds"))
    other = make_experiment(dataset=dict(name="folder"))
    merged = override_trained(trained, other)
    assert (merged.dataset.root, merged.dataset.source) == ("photos", "tfds")
    assert other.dataset.root == ""
    other = make_experiment(dataset=dict(name="cityscapes"))
    assert override_trained(trained, other).dataset.root == ""


@pytest.mark.parametrize(
    "run", [dict(), dict(mode="slide", crop_size=(8, 8), stride=(5, 5)), dict(flip=True)]
)
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
    segment.model.apply = lambda variables, images, train: (
        shapes.append(images.shape),
        (images, {}),
    )[1]
    assert segment(random_image(40, 60, 3)).shape == (40, 60)
    assert shapes == [(1, 10, 15, 3)]


# --- Scores and weights that are not finite -------------------------------------------------------


VIEWS = [
    dict(),
    dict(flip=True),
    dict(scales=(0.5, 1.0)),
    dict(mode="slide", crop_size=(6, 6), stride=(4, 4)),
    dict(mode="slide", crop_size=(6, 6), stride=(4, 4), scales=(1.0, 2.0), flip=True),
]


@pytest.mark.parametrize(
    "run, value",
    [
        *((run, -np.inf) for run in VIEWS),
        (VIEWS[0], np.nan),
        (VIEWS[0], np.inf),
        (VIEWS[-1], np.nan),
    ],
)
def test_scores_that_are_not_finite_are_an_error(run, value):
    segment = make_predictor(**run)
    apply = segment.model.apply

    def breaking(variables, images, train):
        logits, out = apply(variables, images, train=train)
        return logits.at[..., 1].set(jnp.where(logits[..., 1] > 0.5, value, logits[..., 1])), out

    segment.model.apply = breaking
    image = np.zeros((8, 9, 3), np.uint8)
    assert segment(image).max() == 0
    image[2:4, 3:5] = 250
    for method in (segment, segment.probabilities):
        with pytest.raises(NonFiniteError) as error:
            method([image])
        assert "of 72 pixels" in error.value.problem
        assert error.value.field == "image[0]" and error.value.hint


def test_overflow_of_float16_is_reported():
    model = toy(lambda images: (images * 1e3).astype(jnp.float16) * jnp.float16(100))
    segment = make_predictor(make_experiment(precision="float16"), model)
    with pytest.raises(NonFiniteError) as error:
        segment(random_image(4, 5, 3))
    assert "float16" in error.value.hint and "of 20 pixels" in error.value.problem


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_variables_that_are_not_finite_are_refused(value):
    variables = {
        "params": {
            "head": {"kernel": np.ones(3, np.float32), "bias": np.array([0, value], np.float32)}
        }
    }
    with pytest.raises(WeightsError) as error:
        Predictor(
            toy(lambda x: x),
            variables,
            make_experiment(),
            classes=("a",),
            palette=((0, 0, 0),),
            source="weights.npz",
        )
    assert error.value.file == "weights.npz" and "params/head/bias" in error.value.problem


# --- Test-time scales -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("run", [dict(), dict(mode="slide", crop_size=(64, 64), stride=(64, 64))])
def test_scales_are_of_the_original_image_in_its_dtype(dtype, run):
    """Against each scale as OpenCV resizes the original to MMSegmentation's size."""
    largest = 255 if dtype == "uint8" else 60000
    image = np.random.default_rng(0).uniform(0, largest, (20, 33, 3)).astype(dtype)
    experiment = make_experiment(
        dataset=dict(dtype=dtype, image_mean=(0.0,) * 3, image_std=(1.0,) * 3),
        resize=(26, 13),
        scales=(0.5, 1.0, 1.75),
        flip=True,
        **run,
    )
    segment = make_predictor(experiment, toy(lambda x: x / largest))
    expected = 0.0
    for long, short in (
        (13, 6),
        (26, 13),
        (45, 22),
    ):  # 26 * 1.75 = 45.5 and 13 * 1.75 = 22.75 are cut
        factor = min(long / 33, short / 20)
        size = (int(33 * factor + 0.5), int(20 * factor + 0.5))
        view = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
        assert view.dtype == dtype
        logits = resize_bilinear(jnp.asarray(view, jnp.float32)[None] / largest, (20, 33))[0]
        expected += np.asarray(
            jax.nn.softmax(logits), np.float64
        )  # a mirror image has the same scores, mirrored
    np.testing.assert_allclose(segment.probabilities(image), expected / 3, atol=2e-6)


def test_sizes_of_scales():
    image = random_image(375, 500, 3)
    shapes = [
        view.shape for view in scaled_views(image, (2048, 512), (0.5, 0.75, 1.0, 1.25, 1.5, 1.75))
    ]
    assert shapes == [
        (256, 341, 3),
        (384, 512, 3),
        (512, 683, 3),
        (640, 853, 3),
        (768, 1024, 3),
        (896, 1195, 3),
    ]
    assert [view.shape for view in scaled_views(image, (0, 0), (0.5, 1.0, 1.5))] == [
        (188, 250, 3),
        (375, 500, 3),
        (563, 750, 3),
    ]
    np.testing.assert_array_equal(
        scaled_views(image, (2048, 512), (1.0,))[0], resize_image(image, (2048, 512))
    )
    assert scaled_views(image, (0, 0), (1.0,))[0] is image
    assert scaled_views(random_image(3, 2, 1), (0, 0), (0.1,))[0].shape == (1, 1, 1)


# --- Weights of MMSegmentation --------------------------------------------------------------------


@pytest.mark.parametrize("channels", [3, 5])
def test_from_mmseg_equals_the_model_with_these_weights(channels, tmp_path):
    config = get_experiment("fcn_r18-d8_64x64_2k_shapes")
    config.dataset.update(
        dict(
            channels=channels,
            dtype="uint8",
            image_mean=(90.0,) * channels,
            image_std=(50.0,) * channels,
        )
    )
    config.model.backbone.update(dict(base_channels=4, stem_channels=4, depth=10))
    for head in config.model.heads.values():
        head.channels = 4
    model = create_model(load_experiment(config).model)
    variables = init_variables(model, seed=3, image_shape=(1, 32, 32, channels))
    np.savez(tmp_path / "weights.npz", **convert.to_mmseg(variables))
    segment = Predictor.from_mmseg(config, tmp_path / "weights.npz")
    image = random_image(32, 40, channels)
    logits, _ = model.apply(
        variables, (jnp.asarray(image[None], jnp.float32) - 90) / 50, train=False
    )
    np.testing.assert_allclose(segment.probabilities(image), jax.nn.softmax(logits)[0], atol=1e-5)
    np.testing.assert_array_equal(segment(image), np.asarray(logits.argmax(-1))[0])
    assert len(segment.classes) == len(segment.palette) == config.model.num_classes
    if channels == 5:
        config.dataset.update(dict(channels=3, image_mean=(90.0,) * 3, image_std=(50.0,) * 3))
        with pytest.raises(WeightsError) as error:
            Predictor.from_mmseg(config, tmp_path / "weights.npz")
        assert error.value.file == str(tmp_path / "weights.npz")


# --- Settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "run, field",
    [
        (dict(mode="tiles"), "mode"),
        (dict(mode="slide"), "crop_size"),
        (dict(mode="slide", crop_size=(8, 8)), "stride"),
        (dict(mode="slide", crop_size=(8, 8), stride=(9, 8)), "stride"),
        (dict(scales=()), "scales"),
        (dict(scales=(1.0, 0.0)), "scales"),
        (dict(batch_size=0), "batch_size"),
    ],
)
def test_wrong_settings_are_refused(run, field):
    with pytest.raises(ConfigError) as error:
        make_settings(make_experiment(**run))
    assert error.value.field == f"eval.{field}"


def test_new_shapes_are_logged_once_and_bounded(caplog):
    made = []
    program = BoundedJitCache(lambda: made.append(1) or (lambda variables, x: x), "test", limit=2)
    with caplog.at_level(logging.INFO, logger="jaxseg.inference.programs"):
        for n in (1, 1, 2, 2, 3):
            program({}, np.zeros(n))
    assert len(caplog.records) == 3 and len(made) == 2


def test_the_predictor_is_found_where_it_was():
    assert jaxseg.Predictor is jaxseg.inference.Predictor is Predictor
    segment = make_predictor()
    assert segment.config is segment.experiment


def test_dataset_metadata_of_a_workdir_and_of_a_step(tmp_path):
    (tmp_path / "dataset.json").write_text(json.dumps({"classes": ["a"], "palette": [[0, 0, 0]]}))
    step = tmp_path / "checkpoints" / "10"
    step.mkdir(parents=True)
    found = load_dataset_metadata(step)
    assert found == load_dataset_metadata(tmp_path)
    with pytest.raises(CheckpointError) as error:
        load_dataset_metadata(tmp_path / "a" / "b" / "c" / "d")
    assert error.value.file == str(tmp_path / "a" / "b" / "c" / "d")
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(CheckpointError) as error:
        load_dataset_metadata(step)
    assert error.value.file == str(tmp_path / "dataset.json")
