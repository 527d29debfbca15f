"""Checkpoints: what is kept, what a killed save leaves, what is restored, bit for bit."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.checkpoints import DATASET, EXPERIMENT, fill, make_state, save

from jaxseg import checkpoint
from jaxseg.errors import CheckpointError, NonFiniteError, WeightsError
from jaxseg.replication import to_host
from jaxseg.training.state import TrainState


def value_of(path) -> float:
    """The number that fills the variables of a checkpoint of `make_state`."""
    return checkpoint.load_variables(path)[1]["params"]["head"]["kernel"][0, 0]


def test_keeps_the_last_and_the_best_and_loads_the_best(tmp_path):
    assert fill(tmp_path, {1: 0.2, 2: 0.5, 3: None, 4: 0.3, 5: None}, keep=2) == [2, 4, 5]
    assert json.loads((tmp_path / "best.json").read_text()) == {"step": 2, "mIoU": 0.5}
    assert checkpoint.find_step(tmp_path) == 2
    experiment, variables = checkpoint.load_variables(tmp_path)
    assert experiment.dataset.classes == ("a", "b")
    assert experiment.to_dict() | {"dataset": 0} == EXPERIMENT.to_dict() | {"dataset": 0}
    assert variables["params"]["head"]["kernel"].tolist() == [[2.0] * 2] * 3
    assert set(variables) == {"params", "batch_stats"}
    assert value_of(tmp_path / "checkpoints" / "4") == 4


def test_a_step_that_was_not_kept_is_named_with_those_that_were(tmp_path):
    fill(tmp_path, {1: 0.2, 2: 0.5, 3: None, 4: 0.3, 5: None}, keep=2)
    with pytest.raises(CheckpointError) as error:
        checkpoint.load_variables(tmp_path / "checkpoints" / "3")
    assert error.value.file == str(tmp_path / "checkpoints" / "3")
    assert "2, 4, 5" in error.value.hint


def test_a_damaged_step_is_named(tmp_path):
    fill(tmp_path, {2: 0.5})
    for file in (tmp_path / "checkpoints" / "2" / "variables").rglob("*"):
        if file.is_file() and file.name not in ("_METADATA", "_CHECKPOINT_METADATA"):
            file.write_bytes(file.read_bytes()[:10])
    with pytest.raises(CheckpointError) as error:
        checkpoint.load_variables(tmp_path)
    assert error.value.file == str(tmp_path / "checkpoints" / "2")


def test_restores_the_whole_state(tmp_path):
    fill(tmp_path, {7: None})
    template = make_state()
    with checkpoint.open_manager(tmp_path) as manager:
        variables, items, position = checkpoint.restore(
            manager, template.variables, template.optimizer_items
        )
    assert position == {"batches": 7, "seconds": 1.5}
    state, expected = TrainState.from_items(variables, items), to_host(make_state(7, 7))
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, state, expected)


def test_a_new_workdir_has_nothing_to_restore(tmp_path):
    with checkpoint.open_manager(tmp_path) as manager:
        assert checkpoint.restore(manager, {}, {}) is None
    with pytest.raises(CheckpointError) as error:
        checkpoint.load_variables(tmp_path)
    assert error.value.file == str(tmp_path)


def test_refuses_to_save_what_is_not_finite(tmp_path):
    with checkpoint.open_manager(tmp_path) as manager:
        with pytest.raises(NonFiniteError) as error:
            save(manager, make_state(np.nan, 1), {})
        assert "step 1" in error.value.problem
        assert "params/backbone/kernel" in error.value.problem
        assert manager.all_steps() == []


def test_a_killed_save_is_ignored(tmp_path):
    fill(tmp_path, {1: None, 2: None})
    leftover = tmp_path / "checkpoints" / "3.orbax-checkpoint-tmp"
    (leftover / "variables").mkdir(parents=True)
    assert value_of(tmp_path) == 2
    with checkpoint.open_manager(tmp_path) as manager:
        assert manager.latest_step() == 2
        save(manager, make_state(3, 3), {"batches": 3})
    assert value_of(tmp_path / "checkpoints" / "3") == 3


def test_a_checkpoint_of_another_state_is_refused(tmp_path):
    fill(tmp_path, {2: None})
    state = make_state()
    other = state.variables | {"params": state.params | {"extra": {"kernel": jnp.zeros(2)}}}
    with checkpoint.open_manager(tmp_path) as manager, pytest.raises(CheckpointError) as error:
        checkpoint.restore(manager, other, state.optimizer_items)
    assert error.value.file == str(tmp_path / "checkpoints" / "2")


def test_variables_alone_make_a_workdir(tmp_path):
    variables = to_host(make_state(6).variables)
    checkpoint.save_variables(tmp_path, EXPERIMENT, variables, json.dumps(DATASET))
    experiment, loaded = checkpoint.load_variables(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)
    assert experiment.dataset.crop_size == (4, 6)
    assert json.loads((tmp_path / "dataset.json").read_text()) == DATASET
    with pytest.raises(CheckpointError) as error:
        checkpoint.load_variables(tmp_path / "nothing")
    assert error.value.file == str(tmp_path / "nothing")


def test_weights_that_are_not_finite_are_refused_by_name(tmp_path):
    variables = to_host(make_state(6).variables)
    variables["batch_stats"]["backbone"]["mean"] = np.array([1, np.inf, np.nan], np.float32)
    checkpoint.save_variables(tmp_path, EXPERIMENT, variables, DATASET)
    with pytest.raises(WeightsError) as error:
        checkpoint.load_variables(tmp_path)
    assert error.value.file == str(tmp_path)
    assert "batch_stats/backbone/mean" in error.value.problem


def test_killed_and_continued_equals_uninterrupted_bit_for_bit(tmp_path):
    tests = Path(__file__).parent
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)]),
        "JAX_PLATFORMS": "cpu",
        # As in a user's run: what the first process compiled, the next ones read.
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "xla"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }

    def start(name, *extra):
        command = [sys.executable, "-m", "helpers.tiny_run", str(tmp_path / name), *extra]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    killed = start("killed", "--wait")
    assert killed.stdout.readline() == "READY\n"
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert [p.name for p in (tmp_path / "killed" / "checkpoints").iterdir()] == ["3"]
    through, killed = start("through"), start("killed")
    assert (through.wait(), killed.wait()) == (0, 0)
    args = checkpoint.ocp.args
    whole = args.Composite(variables=args.StandardRestore(), optimizer=args.StandardRestore())
    results = {}
    for name in ("through", "killed"):
        with checkpoint.open_manager(tmp_path / name, read_only=True) as manager:
            assert manager.latest_step() == 6
            found = manager.restore(6, args=whole)
            results[name] = {"variables": found["variables"], "optimizer": found["optimizer"]}
    assert len(jax.tree.leaves(results["through"])) > 20
    jax.tree.map(np.testing.assert_array_equal, results["through"], results["killed"])
