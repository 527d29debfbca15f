"""Checkpoints and workdirs: what is kept, what a kill leaves, what a second config may change, and resuming bit for bit."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from jaxseg import checkpoint, errors, precision
from jaxseg.config import defaults, fields
from jaxseg.errors import WeightsError
from jaxseg.training import state as train_state
from jaxseg.weights.class_rows import Classes

CONFIG = ConfigDict({
    "name": "toy", "steps": 4, "batch_size": 2, "model": {"heads": {"decode": {"name": "fcn", "channels": 4}}},
    "dataset": defaults.DATASET | {"name": "folder", "root": "a", "crop_size": (4, 6), "dtype": "uint8"}, "eval": defaults.EVALUATION,
})  # fmt: skip
DATASET = {"name": "folder", "classes": ["a", "b"]}


def make_state(value=0.0, step=0):
    policy = precision.make_policy(ConfigDict({"precision": "float16", "loss_scale": 0.0}))
    variables = {
        "params": {
            "backbone": {"kernel": np.full((2, 3), value, np.float32)},
            "head": {"kernel": np.full((3, 2), value, np.float32)},
        },
        "batch_stats": {"backbone": {"mean": np.full(3, value, np.float32)}},
    }
    optimizer = optax.chain(optax.trace(0.9), optax.scale_by_learning_rate(lambda count: 0.1))
    state = train_state.create(variables, optimizer, policy, seed=3)
    return train_state.replicate(state.replace(step=jnp.int32(step)))


def fill(workdir, mious, **options):
    checkpoint.write_config(workdir, CONFIG, DATASET)
    with checkpoint.open_manager(workdir, **options) as manager:
        for step, miou in mious.items():
            checkpoint.save(
                manager, make_state(step, step), {"batches": step, "seconds": 1.5}, miou
            )
        checkpoint.write_best(manager)
        return sorted(manager.all_steps())


def test_fields_newer_than_a_run_have_their_defaults(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps({"dataset": {"name": "folder", "flip": 0.25}, "eval": {"flip": True}})
    )
    config = checkpoint.read_config(tmp_path)
    assert (
        config.dataset.flip == 0.25
        and config.dataset.source == "files"
        and config.eval.flip
        and config.eval.source == ""
    )
    assert config.dataset.dtype == "uint8"


def test_a_continued_run_keeps_what_its_first_start_measured(tmp_path):
    open_config = CONFIG.copy_and_resolve_references().unlock()
    open_config.losses = ConfigDict(
        {"decode": {"class_weight": ("auto",)}, "aux_0": {"class_weight": (1.0, 3.0)}}
    )
    open_config.dataset.dtype = ""
    measured = open_config.copy_and_resolve_references()
    measured.dataset.update(dict(dtype="uint16", image_mean=(1.0,), image_std=(2.0,), channels=1))
    measured.losses.decode.class_weight = (0.5, 1.5)
    checkpoint.write_config(tmp_path, measured, DATASET)
    open_config.dataset.channels = 1
    assert checkpoint.recall_measured(tmp_path, open_config) is open_config  # nothing was saved yet
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)
    recalled = checkpoint.recall_measured(tmp_path, open_config)
    assert recalled.to_dict() == measured.to_dict() and open_config.dataset.dtype == ""
    checkpoint.check_config(tmp_path, recalled)
    given = open_config.copy_and_resolve_references()
    given.dataset.image_mean, given.losses.decode.class_weight = (7.0,), (2.0, 2.0)
    recalled = checkpoint.recall_measured(tmp_path, given)
    assert recalled.dataset.image_mean == (7.0,) and recalled.losses.decode.class_weight == (
        2.0,
        2.0,
    )


def test_keeps_the_last_and_the_best_and_loads_the_best(tmp_path):
    assert fill(tmp_path, {1: 0.2, 2: 0.5, 3: None, 4: 0.3, 5: None}, keep=2) == [2, 4, 5]
    assert json.loads((tmp_path / "best.json").read_text()) == {"step": 2, "mIoU": 0.5}
    config, variables = checkpoint.load_variables(tmp_path)
    assert config.dataset.classes == ("a", "b") and config.is_locked
    expected = fields.complete(CONFIG.copy_and_resolve_references()).to_dict()
    assert config.to_dict() | {"dataset": 0} == expected | {"dataset": 0}
    assert variables["params"]["head"]["kernel"].tolist() == [[2.0] * 2] * 3 and set(variables) == {
        "params",
        "batch_stats",
    }
    assert (
        checkpoint.load_variables(tmp_path / "checkpoints" / "4")[1]["params"]["head"]["kernel"][
            0, 0
        ]
        == 4
    )
    with pytest.raises(checkpoint.CheckpointError) as error:
        checkpoint.load_variables(tmp_path / "checkpoints" / "3")
    assert error.value.file == str(tmp_path / "checkpoints" / "3") and "2, 4, 5" in error.value.hint
    for file in (tmp_path / "checkpoints" / "2" / "variables").rglob("*"):
        if file.is_file() and file.name not in ("_METADATA", "_CHECKPOINT_METADATA"):
            file.write_bytes(file.read_bytes()[:10])
    with pytest.raises(checkpoint.CheckpointError) as error:
        checkpoint.load_variables(tmp_path)
    assert error.value.file == str(tmp_path / "checkpoints" / "2")


def test_restores_the_whole_state(tmp_path):
    fill(tmp_path, {7: None})
    with checkpoint.open_manager(tmp_path) as manager:
        state, position = checkpoint.restore(manager, make_state())
    assert position == {"batches": 7, "seconds": 1.5}
    expected = train_state.to_host(make_state(7, 7))
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, state, expected)


def test_never_saves_what_is_not_a_number(tmp_path):
    with checkpoint.open_manager(tmp_path) as manager:
        with pytest.raises(errors.NonFiniteError, match="step 1: .*params/backbone/kernel"):
            checkpoint.save(manager, make_state(np.nan, 1), {})
        assert manager.all_steps() == []


def test_a_killed_save_is_ignored_and_another_state_is_refused(tmp_path):
    fill(tmp_path, {1: None, 2: None})
    leftover = tmp_path / "checkpoints" / "3.orbax-checkpoint-tmp"
    (leftover / "variables").mkdir(parents=True)
    assert checkpoint.load_variables(tmp_path)[1]["params"]["head"]["kernel"][0, 0] == 2
    with checkpoint.open_manager(tmp_path) as manager:
        assert manager.latest_step() == 2
        other = make_state()
        other = other.replace(params=other.params | {"extra": {"kernel": jnp.zeros(2)}})
        with pytest.raises(checkpoint.CheckpointError) as error:
            checkpoint.restore(manager, other)
        assert error.value.file == str(tmp_path / "checkpoints" / "2")
        checkpoint.save(manager, make_state(3, 3), {"batches": 3})
    assert (
        checkpoint.load_variables(tmp_path / "checkpoints" / "3")[1]["params"]["head"]["kernel"][
            0, 0
        ]
        == 3
    )


def test_variables_alone_make_a_workdir(tmp_path):
    variables = train_state.to_host(make_state(6).variables)
    checkpoint.save_variables(tmp_path, CONFIG, variables, json.dumps(DATASET))
    config, loaded = checkpoint.load_variables(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)
    assert (
        config.dataset.crop_size == (4, 6)
        and json.loads((tmp_path / "dataset.json").read_text()) == DATASET
    )
    with pytest.raises(checkpoint.CheckpointError) as error:
        checkpoint.load_variables(tmp_path / "nothing")
    assert error.value.file == str(tmp_path / "nothing")


def test_another_config_is_refused_by_field(tmp_path):
    checkpoint.check_config(tmp_path, CONFIG)
    checkpoint.write_config(tmp_path, CONFIG, DATASET)
    changed = CONFIG.copy_and_resolve_references()
    changed.steps, changed.eval.flip, changed.dataset.root = 9, True, "b"
    checkpoint.check_config(tmp_path, changed)
    changed.model.heads.decode.channels = 8
    checkpoint.check_config(
        tmp_path, changed
    )  # nothing saved yet: a start that failed binds nothing
    (tmp_path / "checkpoints" / "10").mkdir(parents=True)
    with pytest.raises(checkpoint.CheckpointError, match="at step 10; config.steps=9"):
        checkpoint.check_config(tmp_path, changed)
    changed.steps = 10
    with pytest.raises(
        checkpoint.CheckpointError, match=r"config.model.heads.decode.channels: 4 there, 8 now"
    ):
        checkpoint.check_config(tmp_path, changed)


def test_init_from_loads_what_fits_and_insists_on_the_backbone(tmp_path):
    fill(tmp_path, {3: 0.1})
    fresh = {
        "params": {
            "backbone": {"kernel": np.zeros((2, 3))},
            "head": {"kernel": np.zeros((3, 5))},
            "new": {"bias": np.zeros(1)},
        },
        "batch_stats": {"backbone": {"mean": np.zeros(3)}},
    }
    merged, report = train_state.load_initial(fresh, str(tmp_path))
    assert merged["params"]["backbone"]["kernel"][0, 0] == 3 and merged["params"]["head"][
        "kernel"
    ].shape == (3, 5)
    assert (
        report.mismatched == ["params/head/kernel"]
        and report.missing == ["params/new/bias"]
        and not report.unused
    )
    table = train_state.format_report(report, str(tmp_path))
    assert "re-initialised (other shape)     1  head/kernel" in table
    fresh["params"]["backbone"]["kernel"] = np.zeros((7, 3))
    for source, word in ((tmp_path, "params/backbone/kernel"), (tmp_path / "no.pth", "not exist")):
        with pytest.raises(WeightsError) as error:
            train_state.load_initial(fresh, str(source))
        assert (
            error.value.file == str(source)
            and error.value.field == "init_from"
            and word in error.value.problem
        )


def test_init_from_a_weight_file_of_a_bare_backbone(tmp_path):
    """ImageNet weights as published for PyTorch: no 'backbone.' before the names, and a classifier of their own."""
    weights = {
        "conv1.weight": np.ones((8, 3, 1, 1)),
        "bn1.running_mean": np.ones(8),
        "fc.weight": np.ones((10, 8)),
    }
    np.savez(
        tmp_path / "r.npz", **{name: value.astype(np.float32) for name, value in weights.items()}
    )
    fresh = {
        "params": {
            "backbone": {"conv1": {"kernel": np.zeros((1, 1, 3, 8))}},
            "decode_head": {"conv_seg": {"bias": np.zeros(2)}},
        },
        "batch_stats": {"backbone": {"bn1": {"mean": np.zeros(8)}}},
    }
    merged, report = train_state.load_initial(fresh, str(tmp_path / "r.npz"))
    assert np.all(merged["params"]["backbone"]["conv1"]["kernel"] == 1) and np.all(
        merged["batch_stats"]["backbone"]["bn1"]["mean"] == 1
    )
    assert report.missing == ["decode_head.conv_seg.bias"] and report.unused == [
        "backbone.fc.weight"
    ]
    fresh["params"]["backbone"]["conv2"] = {"kernel": np.zeros((1, 1, 8, 8))}
    with pytest.raises(WeightsError, match=r"backbone.conv2.weight") as error:
        train_state.load_initial(fresh, str(tmp_path / "r.npz"))
    assert error.value.file == str(tmp_path / "r.npz") and error.value.field == "init_from"


def test_weights_that_are_not_numbers_are_refused_by_name(tmp_path):
    variables = train_state.to_host(make_state(6).variables)
    variables["batch_stats"]["backbone"]["mean"] = np.array([1, np.inf, np.nan], np.float32)
    checkpoint.save_variables(tmp_path / "run", CONFIG, variables, DATASET)
    for load in (
        checkpoint.load_variables,
        lambda path: train_state.load_initial(variables, str(path)),
    ):
        with pytest.raises(WeightsError, match="batch_stats/backbone/mean") as error:
            load(tmp_path / "run")
        assert error.value.file == str(tmp_path / "run")
    np.savez(tmp_path / "r.npz", **{"conv1.weight": np.full((8, 3, 1, 1), np.nan, np.float32)})
    with pytest.raises(WeightsError, match="backbone.conv1.weight") as error:
        train_state.load_initial(
            {"params": {"backbone": {"conv1": {"kernel": np.zeros((1, 1, 3, 8))}}}},
            str(tmp_path / "r.npz"),
        )
    assert error.value.file == str(tmp_path / "r.npz")


def test_a_run_keeps_its_classes(tmp_path):
    """dataset.json is written by the first start, and a continued run has its classes."""
    config = CONFIG.copy_and_resolve_references()
    checkpoint.write_config(
        tmp_path, config, {"classes": ["x", "y"]}
    )  # a start that failed before its first save
    assert checkpoint.recall_classes(tmp_path, config) is config
    fill(tmp_path, {1: None})
    checkpoint.write_config(tmp_path, config, {"classes": ["b", "a"]})
    assert json.loads((tmp_path / "dataset.json").read_text()) == DATASET
    assert (
        checkpoint.recall_classes(tmp_path, config).dataset.classes == ("a", "b")
        and config.dataset.classes == ()
    )
    config.dataset.classes = ("b", "a")
    with pytest.raises(checkpoint.CheckpointError) as error:
        checkpoint.recall_classes(tmp_path, config)
    assert error.value.field == "dataset.classes" and error.value.file == str(tmp_path)


@pytest.mark.parametrize("ours, rows, told", [
    (("b", "a"), [1, 0], "2 of 2"), (("c", "b", "a"), [None, 1, 0], "2 of 3 rows, new: c"), (("b",), [1], "1 of 1"), (("x", "y"), [None, None], "0 of 2"),
])  # fmt: skip
def test_init_from_takes_classifier_rows_by_class_name(tmp_path, ours, rows, told):
    variables = train_state.to_host(make_state(6).variables)
    variables["params"]["head"] = {
        "kernel": np.arange(6, dtype=np.float32).reshape(3, 2),
        "points": np.arange(8, dtype=np.float32).reshape(4, 2),
    }
    checkpoint.save_variables(tmp_path, CONFIG, variables, DATASET)
    k = len(ours)
    fresh = train_state.to_host(make_state(0).variables)
    fresh["params"]["head"] = {
        "kernel": np.full((3, k), -1.0),
        "points": np.full((2 + k, k), -1.0),
    }  # points: 2 features, then scores
    axes = {"params/head/kernel": (1,), "params/head/points": (0, 1)}
    merged, report = train_state.load_initial(fresh, str(tmp_path), Classes(ours, lambda: axes))
    found, source = merged["params"]["head"], variables["params"]["head"]
    for column, row in enumerate(rows):
        np.testing.assert_array_equal(
            found["kernel"][:, column], [-1] * 3 if row is None else source["kernel"][:, row]
        )
        expected = (
            [
                source["points"][r if r < 2 else 2 + rows[r - 2], row]
                if r < 2 or rows[r - 2] is not None
                else -1
                for r in range(2 + k)
            ]
            if row is not None
            else -1
        )
        np.testing.assert_array_equal(found["points"][:, column], expected)
    assert told in report.classes and told in train_state.format_report(report, "x")
    assert merged["params"]["backbone"]["kernel"][0, 0] == 6
    _, same = train_state.load_initial(
        train_state.to_host(make_state(0).variables), str(tmp_path), Classes(("a", "b"), dict)
    )
    assert not same.classes


# A whole small run in a process of its own: the real loop and checkpoints around one convolution with dropout and norm.
RUN = """
import sys, time
import jax, jax.numpy as jnp
from test_train import BATCH, SIZE, Batches, make_config, make_pieces
from jaxseg import checkpoint, precision, train, train_state
from jaxseg.progress import Progress

workdir, steps = sys.argv[1], 6
config = make_config()
state, step = make_pieces(config, 1)
with checkpoint.open_manager(workdir) as manager:
    if manager.latest_step() is not None:
        state, position = checkpoint.restore(manager, state)
        state = train_state.replicate(state, jax.devices()[:1])
    batches = Batches(1)
    batches.position = int(state.step)
    progress = Progress(workdir, steps=steps, batch_size=BATCH, start=int(state.step), enabled=False)
    hooks = train.Hooks(progress, manager, lambda done, state: {"mIoU": 0.5})
    def slow(state, batch):
        if "--wait" in sys.argv and batches.position == 5:
            manager.wait_until_finished()
            print("READY", flush=True)
            time.sleep(60)
        return step(state, batch)
    train.run_steps(state, slow, batches, hooks, steps=steps, log_every=10, eval_every=6, checkpoint_every=3,
                    policy=precision.make_policy(config))
"""


def test_killed_and_continued_equals_uninterrupted_bit_for_bit(tmp_path):
    tests = Path(__file__).parent
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)]),
        "JAX_PLATFORMS": "cpu",
    }
    # as a user's run: what the first process compiled, the next ones read
    environment |= {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "xla"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }

    def start(workdir, *extra):
        return subprocess.Popen(
            [sys.executable, "-c", RUN, str(workdir), *extra],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )

    killed = start(tmp_path / "killed", "--wait")
    assert killed.stdout.readline() == "READY\n"
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert [p.name for p in (tmp_path / "killed" / "checkpoints").iterdir()] == ["3"]
    through, killed = start(tmp_path / "through"), start(tmp_path / "killed")
    assert (through.wait(), killed.wait()) == (0, 0)
    results = {}
    for name in ("through", "killed"):
        with checkpoint.open_manager(tmp_path / name, read_only=True) as manager:
            assert manager.latest_step() == 6
            found = manager.restore(6, args=checkpoint.ocp.args.Composite(
                variables=checkpoint.ocp.args.StandardRestore(), optimizer=checkpoint.ocp.args.StandardRestore()
            ))  # fmt: skip
            results[name] = {"variables": found["variables"], "optimizer": found["optimizer"]}
    assert len(jax.tree.leaves(results["through"])) > 20
    jax.tree.map(np.testing.assert_array_equal, results["through"], results["killed"])
