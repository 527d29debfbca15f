"""The JSON files of a workdir: experiments of all versions, classes, resuming."""

import dataclasses
import json
from pathlib import Path

import pytest
from flax.core import FrozenDict
from helpers.checkpoints import DATASET, EXPERIMENT

from jaxseg import workdir as workdirs
from jaxseg.config.schema import LossConfig, ModuleConfig
from jaxseg.errors import CheckpointError
from jaxseg.models import create_model

DATA = Path(__file__).parent / "data"


def with_dataset(experiment, **changes):
    return dataclasses.replace(
        experiment, dataset=dataclasses.replace(experiment.dataset, **changes)
    )


def with_head(experiment, **options):
    head = experiment.model.heads["decode"]
    head = dataclasses.replace(head, options=FrozenDict({**head.options, **options}))
    heads = FrozenDict({**experiment.model.heads, "decode": head})
    return dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, heads=heads))


def add_step(workdir, step):
    (workdir / "checkpoints" / str(step)).mkdir(parents=True)


# --- config.json ----------------------------------------------------------------------------------


def test_an_experiment_comes_back_as_it_was(tmp_path):
    experiment = with_dataset(EXPERIMENT, nodata=("nan", -9999.0), image_mean=(1.0, 2.0, 3.0))
    workdirs.write_experiment(tmp_path, experiment, DATASET)
    assert json.loads((tmp_path / "config.json").read_text())["schema"] == 2
    assert workdirs.read_experiment(tmp_path).to_dict() == experiment.to_dict() | {
        "losses": {"decode": EXPERIMENT.losses["decode"].to_dict()}
    }


def test_a_module_of_a_plug_in_is_written_by_its_path(tmp_path):
    heads = FrozenDict({"decode": ModuleConfig(name=Path, options=FrozenDict({"channels": 4}))})
    model = dataclasses.replace(EXPERIMENT.model, heads=heads)
    experiment = dataclasses.replace(EXPERIMENT, model=model)
    workdirs.write_experiment(tmp_path, experiment, DATASET)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["model"]["heads"]["decode"]["name"] == f"{Path.__module__}.Path"


def old_run(folder, **changes):
    """A workdir of the first edition, whose config.json has no schema version."""
    stored = json.loads((DATA / "old_config.json").read_text())
    assert "schema" not in stored
    (folder / "config.json").write_text(json.dumps(stored | changes))
    add_step(folder, 20)


def test_fields_newer_than_a_run_have_their_defaults(tmp_path):
    old_run(tmp_path)
    old = workdirs.read_experiment(tmp_path)
    assert (old.optimizer.b1, old.model.dropout_rate) == (0.9, 0.1)
    assert (old.dataset.nodata, old.eval.source) == ((), "")
    assert old.losses["decode"].options["sampler"]["name"] == ""
    assert old.dataset.crop_size == (64, 64) and old.dataset.dtype == "uint8"
    create_model(old.model)


def test_runs_from_before_other_dtypes_are_of_uint8(tmp_path):
    stored = json.loads((DATA / "old_config.json").read_text())
    del stored["dataset"]["dtype"]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    assert workdirs.read_experiment(tmp_path).dataset.dtype == "uint8"


def test_a_run_of_a_newer_version_is_refused_by_its_fields(tmp_path):
    stored = json.loads((DATA / "old_config.json").read_text())
    old_run(tmp_path, ema={"decay": 0.99}, dataset=stored["dataset"] | {"sharpen": 0.5})
    with pytest.raises(CheckpointError) as error:
        workdirs.read_experiment(tmp_path)
    assert "ema" in error.value.problem and "dataset.sharpen" in error.value.problem
    assert error.value.file == str(tmp_path / "config.json") and error.value.field


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "\xff"])
def test_a_damaged_config_is_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError) as error:
        workdirs.read_experiment(tmp_path)
    assert error.value.file == str(tmp_path / "config.json")


# --- dataset.json ---------------------------------------------------------------------------------


@pytest.mark.parametrize("below", ["", "checkpoints/5"])
def test_metadata_of_a_workdir_or_a_step(tmp_path, below):
    with pytest.raises(CheckpointError) as error:
        workdirs.load_dataset_metadata(tmp_path / below)
    assert error.value.file == str(tmp_path / below)
    workdirs.write_experiment(tmp_path, EXPERIMENT, json.dumps(DATASET))
    assert workdirs.load_dataset_metadata(tmp_path / below) == DATASET


def test_damaged_metadata_is_named(tmp_path):
    (tmp_path / "dataset.json").write_text("{")
    for read in (workdirs.load_dataset_metadata, workdirs.read_classes):
        with pytest.raises(CheckpointError) as error:
            read(tmp_path)
        assert error.value.file == str(tmp_path / "dataset.json")


def test_training_summary(tmp_path):
    assert workdirs.read_training(tmp_path) is None
    (tmp_path / "metrics.json").write_text('{"mIoU": 0.5}')
    assert workdirs.read_training(tmp_path) is None
    (tmp_path / "metrics.json").write_text('{"training": {"seconds": 2}}')
    assert workdirs.read_training(tmp_path) == {"seconds": 2}
    for damaged in ("{", "[]"):
        (tmp_path / "metrics.json").write_text(damaged)
        with pytest.raises(CheckpointError) as error:
            workdirs.read_training(tmp_path)
        assert error.value.file == str(tmp_path / "metrics.json")


# --- Resuming -------------------------------------------------------------------------------------


def test_a_resumed_run_keeps_what_its_first_start_measured(tmp_path):
    losses = {
        "decode": LossConfig("cross_entropy", options=FrozenDict({"class_weight": ("auto",)})),
        "aux_0": LossConfig("cross_entropy", options=FrozenDict({"class_weight": (1.0, 3.0)})),
    }
    opened = with_dataset(EXPERIMENT, dtype="", channels=1)
    opened = dataclasses.replace(opened, losses=FrozenDict(losses))
    weighted = dataclasses.replace(
        losses["decode"], options=FrozenDict({"class_weight": (0.5, 1.5)})
    )
    measured = with_dataset(opened, dtype="uint16", image_mean=(1.0,), image_std=(2.0,))
    measured = dataclasses.replace(measured, losses=FrozenDict({**losses, "decode": weighted}))
    workdirs.write_experiment(tmp_path, measured, DATASET)
    assert workdirs.restore_measured_fields(tmp_path, opened) is opened  # nothing was saved yet
    add_step(tmp_path, 4)
    restored = workdirs.restore_measured_fields(tmp_path, opened)
    assert restored == measured and opened.dataset.dtype == ""
    workdirs.check_experiment(tmp_path, restored)


def test_a_resumed_run_keeps_what_the_config_states(tmp_path):
    weights = {
        "decode": LossConfig("cross_entropy", options=FrozenDict({"class_weight": (2.0, 2.0)}))
    }
    measured = with_dataset(EXPERIMENT, image_mean=(1.0,) * 3, image_std=(2.0,) * 3)
    workdirs.write_experiment(tmp_path, measured, DATASET)
    add_step(tmp_path, 4)
    stated = with_dataset(EXPERIMENT, image_mean=(7.0,) * 3)
    stated = dataclasses.replace(stated, losses=FrozenDict(weights))
    restored = workdirs.restore_measured_fields(tmp_path, stated)
    assert restored.dataset.image_mean == (7.0,) * 3 and restored.dataset.image_std == (2.0,) * 3
    assert restored.losses == stated.losses
    other = with_dataset(EXPERIMENT, channels=5)
    assert workdirs.restore_measured_fields(tmp_path, other).dataset.image_mean == ()


def test_a_run_keeps_its_classes(tmp_path):
    """dataset.json is written by the first start, and a resumed run has its classes."""
    workdirs.write_experiment(tmp_path, EXPERIMENT, {"classes": ["x", "y"]})
    assert workdirs.restore_classes(tmp_path, EXPERIMENT) is EXPERIMENT  # nothing was saved yet
    workdirs.write_experiment(tmp_path, EXPERIMENT, DATASET)
    add_step(tmp_path, 1)
    workdirs.write_experiment(tmp_path, EXPERIMENT, {"classes": ["b", "a"]})
    assert json.loads((tmp_path / "dataset.json").read_text()) == DATASET
    assert workdirs.restore_classes(tmp_path, EXPERIMENT).dataset.classes == ("a", "b")
    assert EXPERIMENT.dataset.classes == ()
    same = with_dataset(EXPERIMENT, classes=("a", "b"))
    assert workdirs.restore_classes(tmp_path, same) is same


@pytest.mark.parametrize("classes, hint", [(("b", "a"), "match_classes"), (("a", "c"), "data set")])
def test_a_run_with_other_classes_is_refused(tmp_path, classes, hint):
    workdirs.write_experiment(tmp_path, EXPERIMENT, DATASET)
    add_step(tmp_path, 1)
    with pytest.raises(CheckpointError) as error:
        workdirs.restore_classes(tmp_path, with_dataset(EXPERIMENT, classes=classes))
    assert error.value.field == "dataset.classes" and error.value.file == str(tmp_path)
    assert hint in error.value.hint


def test_classes_in_another_order_are_matched_by_name_where_asked(tmp_path):
    workdirs.write_experiment(tmp_path, EXPERIMENT, DATASET)
    add_step(tmp_path, 1)
    by_name = with_dataset(EXPERIMENT, classes=("b", "a"), match_classes="name")
    assert workdirs.restore_classes(tmp_path, by_name).dataset.classes == ("a", "b")
    with pytest.raises(CheckpointError):
        workdirs.restore_classes(tmp_path, with_dataset(by_name, classes=("b", "c")))


def test_another_experiment_is_refused_by_field(tmp_path):
    workdirs.check_experiment(tmp_path, EXPERIMENT)
    workdirs.write_experiment(tmp_path, EXPERIMENT, DATASET)
    changed = with_dataset(EXPERIMENT, root="b", classes=("x",))
    changed = dataclasses.replace(
        changed, steps=9, eval=dataclasses.replace(changed.eval, flip=True)
    )
    workdirs.check_experiment(tmp_path, changed)
    wider = with_head(changed, channels=8)
    workdirs.check_experiment(tmp_path, wider)  # nothing was saved yet
    add_step(tmp_path, 10)
    with pytest.raises(CheckpointError) as error:
        workdirs.check_experiment(tmp_path, wider)
    assert (
        error.value.field == "steps"
        and "at step 10, but config.steps is only 9" in error.value.problem
    )
    wider = dataclasses.replace(wider, steps=10)
    with pytest.raises(CheckpointError) as error:
        workdirs.check_experiment(tmp_path, wider)
    assert error.value.field == "model.heads.decode.channels"
    assert "channels: 4 there, 8 now" in error.value.problem
    workdirs.check_experiment(tmp_path, dataclasses.replace(changed, steps=10))


def test_a_run_of_the_first_edition_is_compared_with_defaults_filled_in(tmp_path):
    old_run(tmp_path)
    old = workdirs.read_experiment(tmp_path)
    stated = with_head(old, num_convs=2)  # the head's default, which the run does not state
    workdirs.check_experiment(tmp_path, dataclasses.replace(stated, steps=40))
    b1 = dataclasses.replace(old, optimizer=dataclasses.replace(old.optimizer, b1=0.8))
    dropout = dataclasses.replace(old, model=dataclasses.replace(old.model, dropout_rate=0.5))
    for field, changed in (
        ("optimizer.b1", b1),
        ("model.dropout_rate", dropout),
        ("model.heads.decode.kernel_size", with_head(old, kernel_size=1)),
    ):
        with pytest.raises(CheckpointError) as error:
            workdirs.check_experiment(tmp_path, changed)
        assert error.value.field == field


@pytest.mark.parametrize("path, step", [("run", None), ("run/checkpoints/5", "5")])
def test_a_workdir_is_found_in_the_home_folder(tmp_path, monkeypatch, path, step):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(CheckpointError) as error:
        workdirs.find_workdir(f"~/{path}")
    assert error.value.file == str(tmp_path / path)
    workdirs.write_experiment(tmp_path / "run", EXPERIMENT, DATASET)
    assert workdirs.find_workdir(f"~/{path}") == (tmp_path / "run", step)
