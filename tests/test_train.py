"""The training step and its loop: any number of devices, overflow, losses that are not finite."""

import dataclasses
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from helpers.narrow import narrow
from helpers.tiny_training import (
    BATCH,
    MEAN,
    SIZE,
    STD,
    TRACES,
    Batches,
    Tiny,
    make_batch,
    make_components,
    make_experiment,
    make_run,
    make_state,
)

from jaxseg import checkpoint, optim, precision
from jaxseg.config import get_experiment
from jaxseg.config.schema import MultiplierConfig
from jaxseg.data import pipeline
from jaxseg.errors import CheckpointError, ConfigError, NonFiniteError
from jaxseg.experiments import load_experiment
from jaxseg.models import create_model, init_variables
from jaxseg.models.layers import Layers
from jaxseg.training import build, hints, loop, overfit
from jaxseg.training import state as train_state
from jaxseg.training.divergence import check_finite_and_average
from jaxseg.training.logging import TrainLogger
from jaxseg.training.step import AXIS, train_step


def close(actual, expected, tolerance, floor=1e-12):
    """Relative to each tensor's largest entry, or to `floor`: some means are 0 but for rounding."""
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(
            a, b, rtol=0, atol=tolerance * max(np.abs(b).max(), floor), err_msg=str(path)
        )


def test_four_devices_equal_one():
    results = {}
    for devices in (1, 4):
        state, step = make_run(make_experiment(), devices)
        before = train_state.to_host(state.params)
        state, metrics = step(state, make_batch(0, devices))
        results[devices] = train_state.to_host((state, jax.tree.map(lambda x: x[:1], metrics)))
    (one, metrics_one), (four, metrics_four) = results[1], results[4]
    close(metrics_four, metrics_one, 1e-5)
    close(four.model_state, one.model_state, 1e-5)
    close(four.params, one.params, 1e-4)
    close(
        jax.tree.map(np.subtract, four.params, before),
        jax.tree.map(np.subtract, one.params, before),
        1e-4,
    )
    assert four.step == 1 and metrics_one["finite"] == 1
    assert any(
        np.abs(a - b).max() > 1e-3
        for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(before))
    )


@pytest.mark.parametrize(
    "name", ["fast_scnn_64x64_1k_b8_cityscapes", "deeplabv3plus_r18-d8_65x65_1k_b8_cityscapes"]
)
def test_four_devices_equal_one_for_a_model_of_the_zoo(name):
    experiment = load_experiment(narrow(get_experiment(name)))
    rng, side = np.random.default_rng(0), experiment.dataset.crop_size[0]
    label = (
        rng.integers(0, experiment.model.num_classes, (BATCH, 4, 4))
        .repeat(17, 1)
        .repeat(17, 2)[:, :side, :side]
        .astype(np.int32)
    )
    label[:2] = 255
    batch = {
        "image": (label[..., None] * 9 + rng.integers(0, 60, (BATCH, side, side, 3))).astype(
            np.uint8
        ),
        "label": label,
        "size": np.full((BATCH, 2), side, np.int32),
    }
    model = create_model(experiment.model, axis_name=AXIS, dropout_rate=0.5)
    components = make_components(experiment, model)
    state = make_state(components, init_variables(model, 0))
    results = {}
    for devices in (1, 4):
        used = jax.devices()[:devices]
        step = components.make_step(used)
        shared = {key: value.reshape(devices, -1, *value.shape[1:]) for key, value in batch.items()}
        after, metrics = step(train_state.replicate(state, used), shared)
        results[devices] = train_state.to_host((after, jax.tree.map(lambda x: x[:1], metrics)))
    (one, metrics_one), (four, metrics_four) = results[1], results[4]
    assert float(metrics_four["loss"][0]) == pytest.approx(float(metrics_one["loss"][0]), rel=1e-5)
    close(four.model_state, one.model_state, 1e-5, floor=1e-2)
    close(four.params, one.params, 1e-4, floor=1e-3)


def test_overflow_changes_nothing_but_the_scale():
    experiment = make_experiment(precision="float16")
    state, step = make_run(experiment, 4)
    batch = make_batch(0, 4)
    batch["image"] = batch["image"].astype(np.float32)
    state, metrics = step(state, batch)
    assert np.all(metrics["finite"])
    before = train_state.to_host(state)
    bad = {**batch, "image": batch["image"].copy()}
    bad["image"][2, 0, 0, 0] = np.inf  # on one device only
    state, metrics = step(state, bad)
    after = train_state.to_host(state)
    assert not np.any(metrics["finite"]) and after.step == 2
    for field in ("params", "model_state", "opt_state"):
        jax.tree.map(np.testing.assert_array_equal, getattr(after, field), getattr(before, field))
    assert (
        after.loss_scale.scale == before.loss_scale.scale / 2
        and after.loss_scale.total_skipped == 1
    )
    state, metrics = step(state, batch)
    assert np.all(metrics["finite"]) and train_state.to_host(state).loss_scale.skipped == 0
    # The schedule waited for the skipped step.
    schedule = make_components(experiment).schedule
    assert np.isclose(metrics["lr"][0], schedule(1))


def run_loop(tmp_path, state, step, batches, target_miou=math.inf, **changes):
    every = dict(steps=6, log_every=2, eval_every=3, checkpoint_every=2)
    experiment = make_experiment(**every | changes)
    evaluated = []

    def evaluate(done, variables):
        assert "params" in variables
        evaluated.append(done)
        return {"mIoU": done / 100}

    logger = TrainLogger(tmp_path, steps=6, batch_size=BATCH)
    with checkpoint.open_manager(tmp_path) as manager:
        policy = precision.make_policy("float32")
        run = loop.Run(experiment, manager, step, policy, logger, evaluate, target_miou)
        try:
            state = loop.run_steps(run, state, batches)
        finally:
            checkpoint.write_best(manager)
            logger.close()
        return state, evaluated, sorted(manager.all_steps())


def test_loop_logs_evaluates_and_keeps_the_best_and_the_last(tmp_path, capsys):
    state, step = make_run(make_experiment(), 4)
    state, evaluated, kept = run_loop(tmp_path, state, step, Batches(4))
    assert (
        TRACES.count((4, "float32")) == 1
    )  # the state came in as the step gives it back, so it compiled once
    assert int(state.step) == 6 and evaluated == [3, 6] and kept == [4, 6]
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 3, 4, 6]
    assert {
        "loss",
        "loss_decode",
        "loss_aux_0",
        "lr",
        "grad_norm",
        "images_per_second",
        "data_wait",
        "seconds",
    } <= rows[0].keys()
    assert json.loads((tmp_path / "best.json").read_text()) == {"step": 6, "mIoU": 0.06}
    printed = capsys.readouterr().out
    assert "step 2/6" in printed and "images/s" in printed and "ETA" in printed
    assert list((tmp_path / "tensorboard").iterdir())


def test_non_finite_loss_names_step_and_files_and_keeps_the_checkpoint(tmp_path):
    state, step = make_run(make_experiment(), 4)
    batches = Batches(4)

    def poisoned(state, batch):
        if batches.position == 4:
            state = state.replace(params=jax.tree.map(lambda x: x * np.nan, state.params))
        return step(state, batch)

    with pytest.raises(NonFiniteError) as error:
        run_loop(tmp_path, state, poisoned, batches, log_every=100, eval_every=0)
    problem = error.value.problem
    assert "step 4" in problem and "photo_3_0" in problem and "photo_2_0" not in problem
    template = make_run(make_experiment(), 4)[0]
    with checkpoint.open_manager(tmp_path, read_only=True) as manager:
        assert manager.all_steps() == [2]
        variables, _, position = checkpoint.restore(
            manager, template.variables, template.optimizer_items
        )
    assert position["batches"] == 2
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables["params"]))


def test_training_stops_early_at_the_target(tmp_path):
    state, step = make_run(make_experiment(), 4)
    state, evaluated, kept = run_loop(tmp_path, state, step, Batches(4), target_miou=0.03)
    assert int(state.step) == 3 and evaluated == [3] and 3 in kept


def test_an_evaluation_that_fails_does_not_cost_the_training(tmp_path):
    state, step = make_run(make_experiment(), 4)

    def fail(done, variables):
        raise OSError("the disk is gone")

    logger = TrainLogger(tmp_path, steps=4, batch_size=BATCH, enabled=False)
    experiment = make_experiment(steps=4, eval_every=2, checkpoint_every=0)
    with checkpoint.open_manager(tmp_path) as manager:
        run = loop.Run(experiment, manager, step, precision.make_policy("float32"), logger, fail)
        with pytest.raises(OSError):
            loop.run_steps(run, state, Batches(4))
        manager.wait_until_finished()
        assert manager.all_steps() == [2]


def test_float16_overflow_is_tolerated_until_it_persists():
    policy = precision.make_policy("float16")
    good = {
        "loss": 1.0,
        "lr": 0.1,
        "grad_norm": 1.0,
        "scale": 1024.0,
        "finite": 1.0,
        "skipped": 0.0,
    }
    bad = {**good, "loss": np.inf, "grad_norm": np.inf, "finite": 0.0, "skipped": 1.0}

    def check(rows, policy=policy, **options):
        return check_finite_and_average(
            rows, 10, lambda index: [f"file_{index}"], policy, **options
        )

    def refused(rows, policy=policy, **options):
        with pytest.raises(NonFiniteError) as error:
            check(rows, policy, **options)
        return error.value.problem

    found = check([good, bad, {**good, "loss": 3.0}])
    assert found["loss"] == 2.0 and found["overflowed"] == 1
    for hopeless in ({"skipped": 51.0, "loss": 1.0}, {"skipped": 6.0}, {"scale": 1.0}):
        problem = refused([good, {**bad, **hopeless}])
        assert "step 12" in problem and "file_11" in problem
    assert "loss inf" in refused([bad], precision.make_policy("float16", 512.0))
    assert "step 11" in refused([{**bad, "loss": 1.0}], precision.make_policy("bfloat16"))
    assert check([{**bad, "loss": 1.0}], last=True)["overflowed"] == 1
    assert "step 12" in refused([good, bad], last=True)


def tiny_run(steps, **changes):
    config = get_experiment("quickstart")
    config.update(
        {"steps": steps, "batch_size": 4, "eval_every": 0, "checkpoint_every": 0, **changes}
    )
    config.dataset.crop_size, config.dataset.check_samples, config.schedule.warmup_steps = (
        (32, 32),
        1,
        0,
    )
    config.model.backbone.base_channels = config.model.backbone.stem_channels = (
        config.model.heads.decode.channels
    ) = 4
    return config


def test_train_evaluates_once_resumes_and_keeps_its_summary(tmp_path, monkeypatch):
    real = pipeline.eval_samples

    class Two(list):
        def __init__(self, samples):
            super().__init__(samples[i] for i in range(2))
            self.spec = samples.spec

    monkeypatch.setattr(pipeline, "eval_samples", lambda *parts: Two(real(*parts)))
    wrong = tiny_run(2)
    wrong.losses.decode.average = "mean"
    with pytest.raises(ConfigError) as error:
        loop.train(wrong, tmp_path)
    assert error.value.field == "losses.decode.average"
    assert not (tmp_path / "config.json").exists()
    first = loop.train(tiny_run(2), tmp_path)
    again = loop.train(tiny_run(2), tmp_path)
    assert again["training"] == first["training"] and again["mIoU"] == first["mIoU"]
    longer = loop.train(tiny_run(3), tmp_path)["training"]
    assert longer["seconds"] > first["training"]["seconds"] and longer["images_per_second"] > 0
    with checkpoint.open_manager(tmp_path, read_only=True) as manager:
        position = manager.restore(
            3, args=checkpoint.ocp.args.Composite(position=checkpoint.ocp.args.JsonRestore())
        )["position"]
    assert position["images"] == 12
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["event"] == "eval"] == [2, 3]
    with pytest.raises(CheckpointError) as error:
        loop.train(tiny_run(2), tmp_path)
    assert error.value.field == "steps"
    assert len(list((tmp_path / "pictures").iterdir())) == 2


@pytest.mark.parametrize(
    "changes, field",
    [
        ({"average": "mean"}, "average"),
        ({"class_weight": (1.0,)}, "class_weight"),
        ({"sampler": {"name": "ohme"}}, "sampler.name"),
        ({"smooth": 1.0}, "smooth"),
    ],
)
def test_loss_options_are_checked_before_anything_is_built(changes, field):
    entry = {"name": "cross_entropy", **changes}
    with pytest.raises(ConfigError) as error:
        build.build_components(make_experiment(losses={"decode": entry}))
    assert error.value.field == f"losses.decode.{field}"


def with_momentum(momentum, steps):
    experiment = make_experiment(steps=steps)
    norm = dataclasses.replace(experiment.model.norm, momentum=momentum)
    model = dataclasses.replace(experiment.model, norm=norm)
    return dataclasses.replace(experiment, model=model)


def test_short_runs_are_warned_of_unsettled_statistics():
    assert hints.batch_norm_warmup_warning(with_momentum(0.99, 2000)) == ""
    warning = hints.batch_norm_warmup_warning(with_momentum(0.99, 300))
    for part in ("4.9%", "300 steps", "0.99", "688 steps", "config.model.norm.momentum=0.9"):
        assert part in warning
    assert hints.batch_norm_warmup_warning(with_momentum(0.9, 300)) == ""


def test_hint_at_pretrained_weights():
    published = make_experiment(pretrained="open-mmlab://resnet18_v1c")
    assert "resnet18_v1c" in hints.pretrained_hint(published)
    for quiet in (dict(pretrained=""), dict(init_from="runs/other")):
        assert hints.pretrained_hint(dataclasses.replace(published, **quiet)) == ""


def test_batch_size_must_divide():
    build.check_batch_size(8, 4)
    with pytest.raises(ConfigError) as error:
        build.check_batch_size(6, 4)
    assert (
        error.value.field == "batch_size" and "6" in error.value.problem and "4" in error.value.hint
    )


ONE_VALUE = {
    "pspnet_r18-d8": "decode_head/psp_modules.0.1/bn",
    "deeplabv3_r18-d8": "decode_head/image_pool.1/bn",
    "deeplabv3plus_r18-d8": "decode_head/image_pool.1/bn",
    "upernet_r18": "decode_head/psp_modules.0.1/bn",
    "apcnet_r18-d8": "decode_head/acm_modules.0/pooled_redu_conv/bn",
    "fast_scnn": "backbone/global_feature_extractor.ppm.0.1/bn",
    "fcn_s50-d8": "backbone/layer1.0/conv2/bn1",
    "fcn_r18-d8": "",
    "encnet_r18-d8": "",
    "gcnet_r18-d8": "",
    "cgnet": "",
}


@pytest.mark.parametrize("name, module", ONE_VALUE.items())
def test_one_value_to_normalise_is_found_before_training(name, module):
    narrow = (
        {}
        if name in ("fast_scnn", "cgnet")
        else dict(backbone=dict(base_channels=4, stem_channels=4), channels=8)
    )
    model = create_model(name, num_classes=3, axis_name=AXIS, **narrow)
    build.check_batch_norm(model, (2, 64, 64, 3))
    if module:
        with pytest.raises(ConfigError) as error:
            build.check_batch_norm(model, (1, 64, 64, 3))
        assert error.value.field == "batch_size" and f"{module} " in error.value.problem
    else:
        build.check_batch_norm(model, (1, 64, 64, 3))


def test_a_crop_of_one_pixel_on_the_map_is_found_too():
    model = create_model(
        "fcn_r18",
        num_classes=3,
        axis_name=AXIS,
        backbone=dict(base_channels=4, stem_channels=4),
        channels=8,
    )
    build.check_batch_norm(model, (1, 64, 64, 3))
    with pytest.raises(ConfigError) as error:
        build.check_batch_norm(model, (1, 32, 32, 3))
    problem = error.value.problem
    assert "backbone/layer4.0/" in problem and "one sample of 1x1" in problem


def test_one_value_to_normalise_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(loop.jax, "device_count", lambda: 1)
    config = tiny_run(2, batch_size=1)
    config.model.heads.decode = dict(name="psp", in_index=-1, channels=4)
    for start in (
        lambda: loop.train(config, tmp_path / "run"),
        lambda: overfit.overfit(config, tmp_path / "run", 1),
    ):
        with pytest.raises(ConfigError) as error:
            start()
        assert error.value.field == "batch_size"
        assert "decode_head/psp_modules.0.1/bn" in error.value.problem
        assert not (tmp_path / "run").exists()


FROZEN = [
    ({"pattern": "^backbone/", "learning_rate": 0.0}, {"params", "batch_stats"}),
    ({"pattern": "^backbone/", "learning_rate": 0.0, "freeze_statistics": False}, {"params"}),
    ({"pattern": "^backbone/", "learning_rate": 0.1, "freeze_statistics": True}, {"batch_stats"}),
]


@pytest.mark.parametrize("rule, still", FROZEN)
def test_frozen_parts_stay_as_they_are(rule, still):
    rules = {"frozen": MultiplierConfig(**rule)}
    experiment = make_experiment()
    experiment = dataclasses.replace(
        experiment, optimizer=dataclasses.replace(experiment.optimizer, multipliers=rules)
    )
    variables = Tiny(Layers()).init(jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))
    frozen = optim.frozen_statistics(rules, variables)
    assert frozen == (("backbone/bn",) if "batch_stats" in still else ())
    model = Tiny(Layers(axis_name=AXIS, frozen_statistics=frozen))
    components = make_components(experiment, model)
    state = make_state(components, variables)
    step = components.make_step(jax.devices()[:2])
    after = train_state.replicate(state, jax.devices()[:2])
    for index in range(2):
        after, _ = step(after, make_batch(index, 2))
    before, after = (
        flatten_dict(tree.variables, sep="/") for tree in (state, train_state.to_host(after))
    )
    for path, value in before.items():
        held = path.split("/")[1] == "backbone" and path.split("/")[0] in still
        assert np.array_equal(value, after[path]) == held, path


def test_rules_that_freeze_statistics():
    variables = jax.eval_shape(
        lambda: init_variables(create_model("emanet_r18-d8", num_classes=3), 0)
    )
    every = optim.frozen_statistics(
        {"all": MultiplierConfig(pattern="", learning_rate=0.0)}, variables
    )
    assert (
        "decode_head/ema_module" in every
        and "backbone/stem.1" in every
        and "auxiliary_head/convs.0/bn" in every
    )
    half = {
        "scales": MultiplierConfig(pattern="/scale$", learning_rate=0.0),
        "stem": MultiplierConfig(pattern="^backbone/stem", learning_rate=0.0),
    }
    assert optim.frozen_statistics(half, variables) == (
        "backbone/stem.1",
        "backbone/stem.4",
        "backbone/stem.7",
    )
    back = {
        "all": MultiplierConfig(pattern="^backbone/", learning_rate=0.0),
        "last": MultiplierConfig(pattern="/layer4", freeze_statistics=False),
    }
    found = optim.frozen_statistics(back, variables)
    assert "backbone/layer3.0/bn1" in found and not any(
        "layer4" in module or "head" in module for module in found
    )
    assert (
        optim.frozen_statistics(
            {"slow": MultiplierConfig(pattern="^backbone/", learning_rate=0.1)}, variables
        )
        == ()
    )
    published = get_experiment("emanet_r50-d8_512x1024_80k_cityscapes").optimizer.multipliers
    rules = {label: MultiplierConfig(**rule.to_dict()) for label, rule in published.items()}
    assert optim.frozen_statistics(rules, variables) == ()


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_a_step_that_is_not_finite_changes_nothing_in_any_precision(name):
    state, step = make_run(make_experiment(precision=name), 4)
    before, batch = train_state.to_host(state), make_batch(0, 4)
    batch["image"] = batch["image"].astype(np.float32)
    batch["image"][0, 0, 0, 0] = np.nan
    state, metrics = step(state, batch)
    after = train_state.to_host(state)
    assert not np.any(metrics["finite"]) and after.step == 1
    for field in ("params", "model_state", "opt_state"):
        jax.tree.map(np.testing.assert_array_equal, getattr(after, field), getattr(before, field))


def test_streams_of_random_numbers_differ_and_labels_may_be_bytes():
    seen = {}

    class Spy:
        def apply(self, variables, images, train, mutable, rngs):
            seen.update(rngs)
            return (images, {}), {}

    def loss(logits, out, label):
        assert label.dtype == jnp.int32
        return jax.lax.pmean(logits.mean(), AXIS), {}

    components = make_components(make_experiment(), Spy())
    state = make_state(components, {"params": {"w": np.zeros(1, np.float32)}})
    batch = make_batch(0, 1) | {"label": np.zeros((1, BATCH, SIZE, SIZE), np.uint8)}
    step = functools.partial(
        train_step,
        model=components.model,
        loss=loss,
        optimizer=components.optimizer,
        schedule=components.schedule,
        policy=components.policy,
        mean=MEAN,
        std=STD,
    )
    keys = jax.vmap(
        lambda state, batch: (step(state, batch), jax.tree.map(jax.random.key_data, seen))[1],
        (None, 0),
        axis_name=AXIS,
    )(state, batch)
    expected = jax.random.key_data(jax.random.fold_in(jax.random.key(1), 0))
    np.testing.assert_array_equal(np.ravel(keys["dropout"]), expected)
    assert not np.array_equal(keys["dropout"], keys["points"])
