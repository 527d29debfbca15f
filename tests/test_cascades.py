"""Cascades: sampling at points, PointRend, statistics of stages. And LR-ASPP's windows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.errors import ConfigError
from jaxseg.losses import cross_entropy, point_cross_entropy
from jaxseg.models import create_model, init_variables
from jaxseg.models.heads.lraspp import LRASPPHead, window_averages
from jaxseg.models.heads.ocr import OCRHead
from jaxseg.models.heads.point import PointHead, sample_bilinear, uncertainty
from jaxseg.models.layers import Layers
from jaxseg.ops import sample_nearest

RNG = np.random.default_rng(0)


def _random(*shape):
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


def _bilinear(image, x, y, align_corners):
    """One value, by the definition."""
    height, width, _ = image.shape
    column, row = (
        (x * (width - 1), y * (height - 1))
        if align_corners
        else (x * width - 0.5, y * height - 0.5)
    )
    total = 0
    for i in range(height):
        for j in range(width):
            total += max(0, 1 - abs(row - i)) * max(0, 1 - abs(column - j)) * image[i, j]
    return total


@pytest.mark.parametrize("align_corners", [False, True])
def test_bilinear_samples_follow_the_definition(align_corners):
    image, points = _random(2, 5, 7, 3), jnp.asarray(RNG.uniform(size=(2, 20, 2)), jnp.float32)
    points = points.at[:, 0].set(0).at[:, 1].set(1)
    expected = [
        [_bilinear(np.asarray(im), *map(float, p), align_corners) for p in ps]
        for im, ps in zip(image, points)
    ]
    np.testing.assert_allclose(sample_bilinear(image, points, align_corners), expected, atol=1e-5)


def test_nearest_samples_are_pixels_and_stay_within_the_map():
    label = jnp.arange(35).reshape(1, 5, 7)
    centres = (
        jnp.stack(jnp.meshgrid(jnp.arange(7), jnp.arange(5)), axis=-1).reshape(1, 35, 2) + 0.5
    ) / jnp.asarray([[[7.0, 5.0]]])
    np.testing.assert_array_equal(sample_nearest(label, centres), label.reshape(1, 35))
    np.testing.assert_array_equal(
        sample_nearest(label, jnp.asarray([[[0.0, 0.0], [1.0, 1.0]]])), [[0, 34]]
    )


@pytest.mark.parametrize("head", [OCRHead, PointHead])
def test_a_second_stage_without_a_first_names_the_heads(head):
    module = head(num_classes=3, channels=4, layer=Layers())
    with pytest.raises(ConfigError) as error:
        jax.eval_shape(
            lambda x: module.init(jax.random.key(0), [x], train=False), _random(1, 4, 4, 2)
        )
    assert error.value.field == "model.heads"


def _point_head(**fields):
    head = PointHead(num_classes=4, channels=8, layer=Layers(), **fields)
    features, previous = [_random(2, 6, 8, 8)], _random(2, 6, 8, 4)
    variables = head.init(
        {"params": jax.random.key(0), "points": jax.random.key(0)}, features, previous, train=False
    )
    return head, variables, features, previous


def test_refinement_changes_the_least_certain_pixels_only():
    head, variables, features, previous = _point_head(subdivision_steps=1, subdivision_points=10)
    refined, _ = head.apply(variables, features, previous, train=False)
    doubled = Layers().resize(previous, (12, 16))
    changed = np.asarray((refined != doubled).any(-1)).reshape(2, -1)
    assert (changed.sum(1) == 10).all()
    unsure = np.asarray(uncertainty(doubled)).reshape(2, -1)
    for i in range(2):
        assert unsure[i][changed[i]].min() >= unsure[i][~changed[i]].max()


def test_training_points_are_uncertain_in_part_and_do_not_depend_on_the_number_of_devices():
    head, variables, features, previous = _point_head(num_points=64)
    features, previous = [jnp.concatenate([features[0]] * 2)], jnp.concatenate([previous] * 2)

    def points(head, features, previous):
        return head.apply(
            variables, features, previous, train=True, rngs={"points": jax.random.key(3)}
        )[1]

    together = points(head, features, previous)
    assert together["points"].shape == (4, 64, 2) and together["point_logits"].shape == (4, 64, 4)
    assert together["points"].min() >= 0 and together["points"].max() < 1
    unsure = uncertainty(sample_bilinear(previous, together["points"]))
    assert unsure[:, :48].mean() > unsure[:, 48:].mean() + 0.2
    shared = PointHead(num_classes=4, channels=8, layer=Layers(axis_name="batch"), num_points=64)
    apart = jax.pmap(lambda f, p: points(shared, [f], p), axis_name="batch")(
        features[0][:, None], previous[:, None]
    )
    for key, value in together.items():
        np.testing.assert_allclose(apart[key][:, 0], value, atol=1e-5)


def test_point_loss_divides_by_all_points():
    logits, points = _random(2, 50, 4), jnp.asarray(RNG.uniform(size=(2, 50, 2)), jnp.float32)
    label = jnp.asarray(RNG.integers(0, 4, (2, 6, 8)), jnp.int32).at[:, :3].set(255)
    sampled = sample_nearest(label, points)
    expected = np.mean(
        [
            0 if k == 255 else -jax.nn.log_softmax(row)[k]
            for row, k in zip(logits.reshape(-1, 4), sampled.reshape(-1))
        ]
    )
    assert (sampled == 255).any()
    np.testing.assert_allclose(
        point_cross_entropy(logits, label, points=points), expected, rtol=1e-5
    )
    np.testing.assert_allclose(cross_entropy(logits, sampled), expected, rtol=1e-5)


def test_a_stages_statistics_move_twice_a_step_as_published():
    heads = {"stage_0": dict(channels=8), "decode": dict(channels=8, ocr_channels=4)}
    fields = dict(
        num_classes=3,
        backbone=dict(base_channels=4, stem_channels=8),
        heads=heads,
        dropout_rate=0.0,
    )
    images, moved = _random(2, 32, 32, 3), []
    for momentum in (0.9, 0.0):  # with 0.0 the statistics are the batch's
        model = create_model("ocrnet_r18-d8", norm=dict(momentum=momentum, epsilon=1e-5), **fields)
        variables = init_variables(model, 0)
        moved.append(
            model.apply(variables, images, train=True, mutable=["batch_stats"])[1]["batch_stats"]
        )
    for part, share in (("decode_head.0", 0.19), ("decode_head.1", 0.1)):
        slow, batch = (jax.tree.leaves(statistics[part])[0] for statistics in moved)
        np.testing.assert_allclose(slow, share * batch, rtol=1e-4, atol=1e-6)


def test_windows_average_what_lies_within():
    x = _random(1, 9, 12, 2)
    expected = [
        [np.asarray(x)[0, i : i + 4, j : j + 4].mean((0, 1)) for j in (0, 5)] for i in (0, 3)
    ]
    np.testing.assert_allclose(window_averages(x, 4, (3, 5))[0], expected, atol=1e-6)


def test_lraspp_says_that_images_are_too_small_or_averages_all():
    features = [_random(1, 16, 16, 4), _random(1, 8, 8, 4), _random(1, 4, 4, 8)]
    head = LRASPPHead(num_classes=3, channels=8, layer=Layers())
    variables = head.init(jax.random.key(0), features, train=False)
    with pytest.raises(ConfigError) as error:
        head.apply(variables, features, train=False)
    assert error.value.field == "small_input" and "'global'" in error.value.hint
    logits, _ = head.clone(small_input="global").apply(variables, features, train=False)
    assert logits.shape == (1, 16, 16, 3)
