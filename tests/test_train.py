"""The training step and its loop: devices do not matter, overflow changes nothing, a bad loss stops with names."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict
from helpers.narrow import narrow
from ml_collections import ConfigDict

from jaxseg import checkpoint, losses, optim, precision
from jaxseg.config.builders import get_experiment
from jaxseg.errors import ConfigError
from jaxseg.models import create_model, init_variables
from jaxseg.models.layers import Layers
from jaxseg.training import loop as train
from jaxseg.training import overfit
from jaxseg.training import state as train_state
from jaxseg.training.logging import Progress
from jaxseg.training.step import train_step

CLASSES, SIZE, BATCH = 3, 12, 8
MEAN, STD = (120.0, 115.0, 100.0), (58.0, 57.0, 56.0)


class Tiny(nn.Module):
    """Two convolutions with batch norm and dropout, and an auxiliary head: all that a device count could disturb."""

    layer: Layers

    @nn.compact
    def __call__(self, images, train=False):
        low = self.layer.conv_norm_act(8, 3, stride=2, name="backbone")(
            images.astype(self.layer.dtype), train=train
        )
        x = self.layer.conv_norm_act(8, 3, name="neck")(low, train=train)
        x, y = (self.layer.dropout(z, train=train) for z in (x, low))
        heads = {
            name: self.layer.conv(CLASSES, 1, use_bias=True, name=name)
            for name in ("decode", "aux_0")
        }
        out = {name: head(z).astype(jnp.float32) for (name, head), z in zip(heads.items(), (x, y))}
        return self.layer.resize(out["decode"], images.shape[1:3]), out


def make_config(**changes):
    config = ConfigDict({
        "steps": 20, "precision": "float32", "loss_scale": 0.0, "model": {"align_corners": False},
        "losses": {"decode": {"name": "cross_entropy", "weight": 1.0, "average": "valid"},
                   "aux_0": {"name": "cross_entropy", "weight": 0.4}},
        "optimizer": {"name": "sgd", "learning_rate": 0.05, "momentum": 0.9, "weight_decay": 1e-3}, "schedule": {"name": "poly"},
    })  # fmt: skip
    config.update(changes)
    return config


def make_batch(index, devices):
    rng = np.random.default_rng(index)
    label = rng.integers(0, CLASSES, (BATCH, SIZE, SIZE)).astype(np.int32)
    label[: BATCH // 4] = 255  # one device of four has nothing but ignored pixels
    label[:, -2:] = 255
    image = (label[..., None] % CLASSES * 60 + rng.integers(0, 60, (BATCH, SIZE, SIZE, 3))).astype(
        np.uint8
    )
    size = np.tile(np.int32([SIZE - 2, SIZE]), (BATCH, 1))
    batch = {"image": image, "label": label, "size": size}
    return {
        key: value.reshape(devices, BATCH // devices, *value.shape[1:])
        for key, value in batch.items()
    }


def make_pieces(config, devices):
    """(state, step) of the tiny model on `devices` virtual devices."""
    state, step = _pieces(config.to_json(), devices)
    return train_state.replicate(state, jax.devices()[:devices]), step


TRACES = []


@functools.cache
def _pieces(config, devices):  # the tests share what is compiled
    config = ConfigDict(json.loads(config))
    policy = precision.make_policy(config)
    model = Tiny(Layers(axis_name=train.AXIS, dropout_rate=0.5, dtype=policy.dtype))
    optimizer, schedule = optim.make_optimizer(config)
    variables = model.init(jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))
    used = jax.devices()[:devices]
    state = train_state.to_host(train_state.create(variables, optimizer, policy, seed=1))
    loss = losses.make_loss(config, train.AXIS)

    def traced_loss(*arguments):
        TRACES.append((devices, config.precision))
        return loss(*arguments)

    step = train.make_step(
        used,
        model=model,
        loss=traced_loss,
        optimizer=optimizer,
        schedule=schedule,
        policy=policy,
        mean=MEAN,
        std=STD,
    )
    return state, step


class Batches:
    """What data.pipeline.train_batches gives, from make_batch."""

    def __init__(self, devices):
        self.position, self._devices = 0, devices

    def __next__(self):
        self.position += 1
        return make_batch(self.position - 1, self._devices)

    def names(self, index):
        return [f"photo_{index}_{i}" for i in range(BATCH)]


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
        state, step = make_pieces(make_config(), devices)
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
    config = narrow(get_experiment(name))
    rng, side = np.random.default_rng(0), config.dataset.crop_size[0]
    label = (
        rng.integers(0, config.model.num_classes, (BATCH, 4, 4))
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
    model = create_model(config.model, axis_name=train.AXIS, dropout_rate=0.5)
    optimizer, schedule = optim.make_optimizer(config)
    policy = precision.make_policy(config)
    state = train_state.to_host(
        train_state.create(init_variables(model, 0), optimizer, policy, seed=1)
    )
    results = {}
    for devices in (1, 4):
        used = jax.devices()[:devices]
        step = train.make_step(
            used,
            model=model,
            loss=losses.make_loss(config, train.AXIS),
            optimizer=optimizer,
            schedule=schedule,
            policy=policy,
            mean=MEAN,
            std=STD,
        )
        shared = {key: value.reshape(devices, -1, *value.shape[1:]) for key, value in batch.items()}
        after, metrics = step(train_state.replicate(state, used), shared)
        results[devices] = train_state.to_host((after, jax.tree.map(lambda x: x[:1], metrics)))
    (one, metrics_one), (four, metrics_four) = results[1], results[4]
    assert float(metrics_four["loss"][0]) == pytest.approx(float(metrics_one["loss"][0]), rel=1e-5)
    close(four.model_state, one.model_state, 1e-5, floor=1e-2)
    close(four.params, one.params, 1e-4, floor=1e-3)


def test_overflow_changes_nothing_but_the_scale():
    config = make_config(precision="float16")
    state, step = make_pieces(config, 4)
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
    assert np.isclose(
        metrics["lr"][0], optim.make_optimizer(config)[1](1)
    )  # the schedule waited for the skipped step


def run_loop(tmp_path, state, step, batches, **changes):
    policy = precision.make_policy(make_config())
    summaries = []

    def evaluate(done, state):
        summaries.append(done)
        return {"mIoU": done / 100}

    progress = Progress(tmp_path, steps=6, batch_size=BATCH)
    settings = {
        "steps": 6,
        "log_every": 2,
        "eval_every": 3,
        "checkpoint_every": 2,
        "policy": policy,
        **changes,
    }
    with checkpoint.open_manager(tmp_path) as manager:
        try:
            state = train.run_steps(
                state, step, batches, train.Hooks(progress, manager, evaluate), **settings
            )
        finally:
            checkpoint.write_best(manager)
            progress.close()
        return state, summaries, sorted(manager.all_steps())


def test_loop_logs_evaluates_and_keeps_the_best_and_the_last(tmp_path, capsys):
    state, step = make_pieces(make_config(), 4)
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
    state, step = make_pieces(make_config(), 4)
    batches = Batches(4)

    def poisoned(state, batch):
        if batches.position == 4:
            state = state.replace(params=jax.tree.map(lambda x: x * np.nan, state.params))
        return step(state, batch)

    with pytest.raises(train.NonFiniteError, match=r"step 4: loss nan.*photo_3_0, photo_3_1"):
        run_loop(tmp_path, state, poisoned, batches, log_every=100, eval_every=0)
    with checkpoint.open_manager(tmp_path, read_only=True) as manager:
        assert manager.all_steps() == [2]
        saved, position = checkpoint.restore(manager, make_pieces(make_config(), 4)[0])
    assert position["batches"] == 2 and all(
        np.isfinite(leaf).all() for leaf in jax.tree.leaves(saved.params)
    )


def test_examine_tolerates_float16_overflow_until_it_persists():
    policy = precision.make_policy(make_config(precision="float16"))
    good = {
        "loss": 1.0,
        "lr": 0.1,
        "grad_norm": 1.0,
        "scale": 1024.0,
        "finite": 1.0,
        "skipped": 0.0,
    }
    bad = {**good, "loss": np.inf, "grad_norm": np.inf, "finite": 0.0, "skipped": 1.0}

    def names(index):
        return [f"file_{index}"]

    found = train.examine([good, bad, {**good, "loss": 3.0}], 10, names, policy)
    assert found["loss"] == 2.0 and found["overflowed"] == 1
    for hopeless in ({"skipped": 51.0, "loss": 1.0}, {"skipped": 6.0}, {"scale": 1.0}):
        with pytest.raises(train.NonFiniteError, match="step 12: .*file_11"):
            train.examine([good, {**bad, **hopeless}], 10, names, policy)
    with pytest.raises(train.NonFiniteError, match="loss inf"):
        train.examine(
            [bad],
            10,
            names,
            precision.make_policy(make_config(precision="float16", loss_scale=512.0)),
        )
    assert train.examine([{**bad, "loss": 1.0}], 10, names, policy, last=True)["overflowed"] == 1
    with pytest.raises(train.NonFiniteError, match="step 12: loss inf"):
        train.examine([good, bad], 10, names, policy, last=True)


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


def test_train_ends_evaluated_once_goes_on_and_keeps_its_account(tmp_path, monkeypatch):
    from jaxseg.data import pipeline

    real = pipeline.eval_samples

    class Two(list):
        def __init__(self, samples):
            super().__init__(samples[i] for i in range(2))
            self.spec = samples.spec

    monkeypatch.setattr(pipeline, "eval_samples", lambda config: Two(real(config)))
    wrong = tiny_run(2)
    wrong.losses.decode.average = "mean"
    with pytest.raises(ValueError, match="config.losses.decode.average 'mean'"):
        train.train(wrong, tmp_path)
    assert not (tmp_path / "config.json").exists()
    first = train.train(tiny_run(2), tmp_path)
    again = train.train(tiny_run(2), tmp_path)
    assert again["training"] == first["training"] and again["mIoU"] == first["mIoU"]
    longer = train.train(tiny_run(3), tmp_path)["training"]
    assert longer["seconds"] > first["training"]["seconds"] and longer["images_per_second"] > 0
    with checkpoint.open_manager(tmp_path, read_only=True) as manager:
        position = manager.restore(
            3, args=checkpoint.ocp.args.Composite(position=checkpoint.ocp.args.JsonRestore())
        )["position"]
    assert position["images"] == 12
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["event"] == "eval"] == [2, 3]
    with pytest.raises(checkpoint.CheckpointError, match="at step 3; config.steps=2"):
        train.train(tiny_run(2), tmp_path)
    assert len(list((tmp_path / "pictures").iterdir())) == 2


def test_loss_options_are_checked_before_anything_is_built():
    for changes, words in (
        ({"average": "mean"}, "config.losses.decode.average"), ({"class_weight": (1.0,)}, "config.losses.decode.class_weight has 1 values for 3"),
        ({"sampler": {"name": "ohme"}}, "config.losses.decode.sampler.name"), ({"smooth": 1.0}, "config.losses.decode of cross_entropy.*Known: average"),
    ):  # fmt: skip
        config = make_config()
        config.model.num_classes = 3
        config.losses.decode.update(changes)
        with pytest.raises(ValueError, match=words):
            losses.make_loss(config)


def test_short_runs_are_warned_of_unsettled_statistics():
    config = get_experiment("fast_scnn_240x320_2k_folder")
    assert train._settling(config) == ""
    config.steps = 300
    assert "still hold 4.9% of their start after 300 steps (momentum 0.99)" in train._settling(
        config
    )
    assert (
        "train for 688 steps or more, or set --config.model.norm.momentum=0.9"
        in train._settling(config)
    )
    config.model.norm.momentum = 0.9
    assert train._settling(config) == ""


def test_batch_size_must_divide():
    train.check_batch_size(8, 4)
    with pytest.raises(ConfigError) as error:
        train.check_batch_size(6, 4)
    assert (
        error.value.field == "batch_size" and "6" in error.value.problem and "4" in error.value.hint
    )


@pytest.mark.parametrize("name, module", [
    ("pspnet_r18-d8", "decode_head/psp_modules.0.1/bn"), ("deeplabv3_r18-d8", "decode_head/image_pool.1/bn"),
    ("deeplabv3plus_r18-d8", "decode_head/image_pool.1/bn"), ("upernet_r18", "decode_head/psp_modules.0.1/bn"),
    ("apcnet_r18-d8", "decode_head/acm_modules.0/pooled_redu_conv/bn"), ("fast_scnn", "backbone/global_feature_extractor.ppm.0.1/bn"),
    ("fcn_s50-d8", "backbone/layer1.0/conv2/bn1"), ("fcn_r18-d8", ""), ("encnet_r18-d8", ""), ("gcnet_r18-d8", ""), ("cgnet", ""),
])  # fmt: skip
def test_one_value_to_normalise_is_found_before_training(name, module):
    narrow = (
        {}
        if name in ("fast_scnn", "cgnet")
        else dict(backbone=dict(base_channels=4, stem_channels=4), channels=8)
    )
    model = create_model(name, num_classes=3, axis_name=train.AXIS, **narrow)
    train.check_batch_norm(model, (2, 64, 64, 3))
    if module:
        with pytest.raises(ConfigError, match=f"{module} ") as error:
            train.check_batch_norm(model, (1, 64, 64, 3))
        assert error.value.field == "batch_size"
    else:
        train.check_batch_norm(model, (1, 64, 64, 3))


def test_a_crop_of_one_pixel_on_the_map_is_found_too():
    model = create_model(
        "fcn_r18",
        num_classes=3,
        axis_name=train.AXIS,
        backbone=dict(base_channels=4, stem_channels=4),
        channels=8,
    )
    train.check_batch_norm(model, (1, 64, 64, 3))
    with pytest.raises(ConfigError, match="backbone/layer4.0/.*one sample of 1x1"):
        train.check_batch_norm(model, (1, 32, 32, 3))


def test_one_value_to_normalise_stops_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(train.jax, "device_count", lambda: 1)
    config = tiny_run(2, batch_size=1)
    config.model.heads.decode = dict(name="psp", in_index=-1, channels=4)
    for start in (
        lambda: train.train(config, tmp_path / "run"),
        lambda: overfit.overfit(config, tmp_path / "run", 1),
    ):
        with pytest.raises(ConfigError, match="decode_head/psp_modules.0.1/bn"):
            start()
        assert not (tmp_path / "run").exists()


FROZEN = [
    ({"pattern": "^backbone/", "learning_rate": 0.0}, {"params", "batch_stats"}),
    ({"pattern": "^backbone/", "learning_rate": 0.0, "freeze_statistics": False}, {"params"}),
    ({"pattern": "^backbone/", "learning_rate": 0.1, "freeze_statistics": True}, {"batch_stats"}),
]


@pytest.mark.parametrize("rule, still", FROZEN)
def test_frozen_parts_stay_as_they_are(rule, still):
    config = make_config()
    config.optimizer.multipliers = ConfigDict({"frozen": rule})
    optimizer, schedule = optim.make_optimizer(config)
    variables = Tiny(Layers()).init(jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))
    frozen = optim.frozen_statistics(config.optimizer.multipliers.to_dict(), variables)
    assert frozen == (("backbone/bn",) if "batch_stats" in still else ())
    model = Tiny(Layers(axis_name=train.AXIS, frozen_statistics=frozen))
    policy = precision.make_policy(config)
    state = train_state.to_host(train_state.create(variables, optimizer, policy, seed=1))
    step = train.make_step(
        jax.devices()[:2],
        model=model,
        loss=losses.make_loss(config, train.AXIS),
        optimizer=optimizer,
        schedule=schedule,
        policy=policy,
        mean=MEAN,
        std=STD,
    )
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
    every = optim.frozen_statistics({"all": dict(pattern="", learning_rate=0.0)}, variables)
    assert (
        "decode_head/ema_module" in every
        and "backbone/stem.1" in every
        and "auxiliary_head/convs.0/bn" in every
    )
    half = {
        "scales": dict(pattern="/scale$", learning_rate=0.0),
        "stem": dict(pattern="^backbone/stem", learning_rate=0.0),
    }
    assert optim.frozen_statistics(half, variables) == (
        "backbone/stem.1",
        "backbone/stem.4",
        "backbone/stem.7",
    )
    back = {
        "all": dict(pattern="^backbone/", learning_rate=0.0),
        "last": dict(pattern="/layer4", freeze_statistics=False),
    }
    found = optim.frozen_statistics(back, variables)
    assert "backbone/layer3.0/bn1" in found and not any(
        "layer4" in module or "head" in module for module in found
    )
    assert (
        optim.frozen_statistics({"slow": dict(pattern="^backbone/", learning_rate=0.1)}, variables)
        == ()
    )
    published = get_experiment(
        "emanet_r50-d8_512x1024_80k_cityscapes"
    ).optimizer.multipliers.to_dict()
    assert optim.frozen_statistics(published, variables) == ()


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_a_step_that_is_not_finite_changes_nothing_in_any_precision(name):
    config = make_config()
    config.precision = name
    state, step = make_pieces(config, 4)
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
        return jax.lax.pmean(logits.mean(), train.AXIS), {}

    config = make_config()
    (optimizer, schedule), policy = optim.make_optimizer(config), precision.make_policy(config)
    state = train_state.create(
        {"params": {"w": np.zeros(1, np.float32)}}, optimizer, policy, seed=1
    )
    batch = make_batch(0, 1) | {"label": np.zeros((1, BATCH, SIZE, SIZE), np.uint8)}
    step = functools.partial(
        train_step,
        model=Spy(),
        loss=loss,
        optimizer=optimizer,
        schedule=schedule,
        policy=policy,
        mean=MEAN,
        std=STD,
    )
    keys = jax.vmap(
        lambda state, batch: (step(state, batch), jax.tree.map(jax.random.key_data, seen))[1],
        (None, 0),
        axis_name=train.AXIS,
    )(state, batch)
    expected = jax.random.key_data(jax.random.fold_in(jax.random.key(1), 0))
    np.testing.assert_array_equal(np.ravel(keys["dropout"]), expected)
    assert not np.array_equal(keys["dropout"], keys["points"])
