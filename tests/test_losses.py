"""Losses: MMSegmentation's values, masks as slicing, OHEM by brute force, devices, gradients."""

import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from jaxseg import constants, losses
from jaxseg.config.checks import problems
from jaxseg.config.schema import LossConfig
from jaxseg.errors import ConfigError
from jaxseg.ops import resize_bilinear

LOSSES = {name: loss.function for name, loss in losses.LOSSES.items()}

K = 3
WEIGHTS = (0.5, 1.0, 2.0)
OHEM = dict(name="ohem", min_kept=4, threshold=0.0)
# Every loss of class scores that sums over pixels or samples, with options that make mask and slice
# comparable.
PIXEL_LOSSES = {
    "cross_entropy": dict(average="valid", class_weight=WEIGHTS),
    "cross_entropy sigmoid": dict(average="valid", sigmoid=True, class_weight=WEIGHTS),
    "cross_entropy ohem": dict(average="valid", sampler=OHEM),
    "focal": dict(average="valid", alpha=(0.2, 0.5, 0.7)),
    "dice": dict(class_weight=WEIGHTS),
    "tversky": {},
    "lovasz": {},
    "lovasz per image": dict(per_image=True),
}


def _case(batch: int = 2, height: int = 4, width: int = 5):
    """Scores [B, H, W, K] and labels with 255s; the second image of two lacks class 2."""
    rng = np.random.default_rng(0)
    logits = 2 * rng.standard_normal((batch, height, width, K)).astype(np.float32)
    label = rng.integers(0, K, (batch, height, width))
    label[rng.random(label.shape) < 0.2] = constants.IGNORE
    label[1][label[1] == 2] = 0
    return jnp.asarray(logits), jnp.asarray(label, jnp.int32)


def _loss(name: str):
    return functools.partial(LOSSES[name.split(" ")[0]], **PIXEL_LOSSES[name])


# MMSegmentation 1.2.2 in float64 (dice: 0.30; class weights of the cross entropy: 0.x's rule) on
# the default case.
REFERENCES = [
    ("cross_entropy", {}, 1.6818717),
    ("cross_entropy", dict(average="valid"), 2.0386324),
    ("cross_entropy", dict(class_weight=WEIGHTS), 1.3973127),
    ("cross_entropy", dict(sigmoid=True), 0.9324895),
    ("cross_entropy", dict(sigmoid=True, average="valid"), 1.1302904),
    ("focal", {}, 0.3147392),
    ("focal", dict(alpha=(0.25, 0.5, 0.75), gamma=1.5, class_weight=WEIGHTS), 0.2871236),
    ("dice", dict(masked=False), 0.6482914),
    ("dice", dict(masked=False, class_weight=WEIGHTS, exponent=1.0, smooth=0.1), 0.9554844),
    ("tversky", {}, 0.6011325),
    ("tversky", dict(class_weight=WEIGHTS, alpha=0.6, beta=0.4, smooth=0.5), 0.806728),
    ("lovasz", {}, 0.7763515),
    ("lovasz", dict(per_image=True), 0.7567706),
    ("lovasz", dict(per_image=True, class_weight=WEIGHTS), 0.7164344),
]


@pytest.mark.parametrize(
    "name, options, expected",
    REFERENCES,
    ids=[f"{n}-{i}" for i, (n, _, _) in enumerate(REFERENCES)],
)
def test_values_are_mmsegmentations(name, options, expected):
    assert float(LOSSES[name](*_case(), **options)) == pytest.approx(expected, rel=2e-6)


def test_se_loss_is_mmsegmentations():
    rng = np.random.default_rng(0)
    rng.standard_normal((2, 4, 5, K)), rng.integers(0, K, (2, 4, 5)), rng.random((2, 4, 5))
    scores = 2 * rng.standard_normal((2, K)).astype(np.float32)
    assert float(LOSSES["se_loss"](jnp.asarray(scores), _case()[1])) == pytest.approx(
        0.9337232, rel=2e-6
    )


@pytest.mark.parametrize("name", PIXEL_LOSSES)
def test_a_mask_equals_slicing(name):
    logits, _ = _case(2, 4, 8)
    rng = np.random.default_rng(1)
    label, kept = jnp.asarray(rng.integers(0, K, (2, 4, 8)), jnp.int32), np.array([0, 2, 3, 6])
    masked = jnp.full_like(label, constants.IGNORE).at[:, :, kept].set(label[:, :, kept])
    value, gradient = jax.value_and_grad(_loss(name))(logits, masked)
    expected, sliced = jax.value_and_grad(_loss(name))(logits[:, :, kept], label[:, :, kept])
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient[:, :, kept], sliced, rtol=1e-4, atol=1e-7)
    assert not np.delete(np.asarray(gradient), kept, axis=2).any()


@pytest.mark.parametrize("name", PIXEL_LOSSES)
def test_gradients_are_finite_at_extremes(name):
    logits, label = _case()
    gradient = jax.jit(jax.grad(_loss(name)))
    assert np.isfinite(gradient(logits * 200, label)).all()
    ignored = jnp.full_like(label, constants.IGNORE)
    assert (
        float(_loss(name)(logits, ignored)) == pytest.approx(0, abs=1e-6)
        and not np.asarray(gradient(logits, ignored)).any()
    )


@pytest.mark.parametrize(
    "threshold, kept", [(None, 3), (0.3, 3), (0.9, 2), (0.3, 1000), (None, 1000)]
)
def test_ohem_keeps_what_brute_force_keeps(threshold, kept):
    logits, label = (np.asarray(x) for x in _case(3, 5, 6))
    loss = np.asarray(losses.pixel_cross_entropy(logits, label))
    found = np.asarray(
        losses.ohem_mask(jnp.asarray(loss), jnp.exp(-loss), jnp.asarray(label), kept, threshold)
    )
    valid = [tuple(i) for i in np.argwhere(label != constants.IGNORE)]
    hardest = sorted(valid, key=lambda i: -loss[i])
    if threshold is None:
        expected = set(hardest[: kept * 3])
    else:  # strictly less likely than the threshold, or than the pixel after the kept ones
        limit = max(threshold, np.exp(-loss[hardest[min(kept * 3, len(valid) - 1)]]))
        expected = {i for i in valid if np.exp(-loss[i]) < limit}
    assert {tuple(i) for i in np.argwhere(found)} == expected


@pytest.mark.parametrize(
    "name", [name for name in PIXEL_LOSSES if name not in ("cross_entropy ohem", "lovasz")]
)
def test_four_devices_equal_one(name):
    """With unequal numbers of valid pixels.

    A device's gradient is 4 times its share, since the transpose of a sum over devices is one.
    """
    logits, label = _case(8)
    label = label.at[:2].set(constants.IGNORE)
    value, gradient = jax.value_and_grad(_loss(name))(logits, label)
    step = jax.pmap(
        jax.value_and_grad(functools.partial(_loss(name), axis_name="batch")), axis_name="batch"
    )
    values, gradients = step(logits.reshape(4, 2, 4, 5, K), label.reshape(4, 2, 4, 5))
    np.testing.assert_allclose(values, np.full(4, value), rtol=1e-6)
    np.testing.assert_allclose(
        gradients.reshape(gradient.shape) / 4, gradient, rtol=1e-5, atol=1e-8
    )


def test_se_loss_on_four_devices_equals_one():
    scores, (_, label) = (
        jnp.asarray(np.random.default_rng(0).standard_normal((8, K)), jnp.float32),
        _case(8),
    )
    four = jax.pmap(functools.partial(LOSSES["se_loss"], axis_name="batch"), axis_name="batch")
    np.testing.assert_allclose(
        four(scores.reshape(4, 2, K), label.reshape(4, 2, 4, 5)),
        np.full(4, LOSSES["se_loss"](scores, label)),
        rtol=1e-6,
    )


def test_make_loss_resizes_weighs_and_names():
    logits, label = _case()
    out = {"decode": logits[:, ::2, ::2], "aux_0": logits[:, ::2, ::2], "presence": logits[:, 0, 0]}
    entries = dict(
        decode=dict(name="cross_entropy", target="", weight=1.0),
        overlap=dict(name="dice", target="decode", weight=3.0, smooth=0.5),
        aux_0=dict(name="focal", target="", weight=0.4),
        presence=dict(name="se_loss", target="", weight=0.2),
    )
    config = ml_collections.ConfigDict(dict(losses=entries, model=dict(align_corners=False)))
    total, parts = losses.make_loss(config)(logits, out, label)
    assert set(parts) == set(entries) and float(total) == pytest.approx(
        sum(float(p) for p in parts.values())
    )
    assert float(parts["overlap"]) == pytest.approx(
        3 * float(losses.dice(logits, label, smooth=0.5))
    )
    resized = resize_bilinear(out["aux_0"], (4, 5))
    assert float(parts["aux_0"]) == pytest.approx(0.4 * float(losses.focal(resized, label)))


ENTRIES = dict(
    decode=dict(name="cross_entropy"),
    points=dict(name="point_cross_entropy", target="point_logits"),
)


def test_entries_may_be_frozen_and_name_functions():
    logits, label = _case()

    def total_variation(scores, label, *, power=1.0, axis_name=None):
        return (jnp.abs(jnp.diff(scores, axis=1)) ** power).mean()

    frozen = {"decode": LossConfig("dice", weight=2.0, options={"smooth": 0.5})}
    frozen["smooth"] = LossConfig(total_variation, target="decode", options={"power": 2.0})
    _, parts = losses.make_loss(frozen, num_classes=K)(logits, {}, label)
    assert float(parts["decode"]) == 2 * float(losses.dice(logits, label, smooth=0.5))
    assert float(parts["smooth"]) == float(total_variation(logits, label, power=2.0))
    with pytest.raises(ConfigError) as error:
        losses.make_loss({"smooth": dict(name=total_variation, pwoer=1.0)})
    assert error.value.field == "losses.smooth.pwoer"


def test_a_loss_gets_the_outputs_that_it_declares():
    logits, label = _case()
    rng = np.random.default_rng(2)
    points, scores = rng.random((2, 7, 2)), rng.standard_normal((2, 7, K))
    out = {"points": jnp.float32(points), "point_logits": jnp.float32(scores)}
    for align_corners in (False, True):
        compute = losses.make_loss(ENTRIES, align_corners=align_corners)
        expected = losses.point_cross_entropy(
            out["point_logits"], label, points=out["points"], align_corners=align_corners
        )
        assert float(compute(logits, out, label)[1]["points"]) == float(expected)
    with pytest.raises(ConfigError) as error:
        losses.make_loss(ENTRIES)(logits, {"point_logits": out["point_logits"]}, label)
    assert error.value.field == "losses.points.target"


@pytest.mark.parametrize(
    "entry, field",
    [
        (dict(name="dice", target="aux_0"), "losses.extra.target"),
        (dict(name="se_loss", target="decode"), "losses.extra.target"),
    ],
)
def test_outputs_that_do_not_fit_are_refused(entry, field):
    logits, label = _case()
    with pytest.raises(ConfigError) as error:
        losses.make_loss({"extra": entry})(logits, {}, label)
    assert error.value.field == field


@pytest.mark.parametrize(
    "entry, heads, field",
    [
        (dict(name="dcie"), (), "losses.decode.name"),
        (dict(name="dice", gamma=1.0), (), "losses.decode.gamma"),
        (dict(name="lovasz", classes="some"), (), "losses.decode.classes"),
        (dict(name="focal", alpha=(0.5, 0.5)), (), "losses.decode.alpha"),
        (dict(name="focal", class_weight=("auto",)), (), "losses.decode.class_weight"),
        (dict(name="se_loss"), ("decode",), "losses.decode.name"),
    ],
)
def test_checks_name_the_field(entry, heads, field):
    with pytest.raises(ConfigError) as error:
        losses.check_losses({"decode": entry}, K, heads)
    assert error.value.field == field


@pytest.mark.parametrize("entry", [dict(name="dice", target="aux_0"), dict(name="class_presence")])
def test_checks_accept_targets_and_earlier_names(entry):
    losses.check_losses({"presence": entry}, K, ("decode",))


@pytest.mark.parametrize("name", losses.LOSSES)
def test_every_option_is_declared_and_its_default_in_range(name):
    entry = dict(name=name, target="", weight=1.0, **losses.defaults_of(name))
    nodes = losses.LOSS.fields(entry, "losses.decode")
    assert None not in nodes.values() and set(entry) == set(nodes)
    entry = {key: value for key, value in entry.items() if value is not None}
    assert list(problems(entry, losses.LOSS, "losses.decode")) == []
    for option in losses.options_of(name):
        (error,) = problems(entry | {option: "wrong"}, losses.LOSS, "losses.decode")
        assert error.field == f"losses.decode.{option}"


@pytest.mark.parametrize(
    "call, field",
    [
        (lambda x, y: losses.cross_entropy(x, y, average="mean"), "average"),
        (lambda x, y: losses.focal(x, y, average="mean"), "average"),
        (lambda x, y: losses.lovasz(x, y, classes="some"), "classes"),
        (lambda x, y: losses.cross_entropy(x, y, class_weight=(1.0, 2.0)), "class_weight"),
        (lambda x, y: losses.cross_entropy(x, y, sampler=OHEM | {"name": "ohme"}), "sampler.name"),
    ],
)
def test_options_that_are_not_known_say_so(call, field):
    with pytest.raises(ConfigError) as error:
        call(*_case())
    assert error.value.field == field
