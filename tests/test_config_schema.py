"""The Experiment: every field declared once, frozen, pure, and the same after a trip through
config.json.
"""

import dataclasses
import json
import pickle
from types import SimpleNamespace

import pytest

from jaxseg.config import Experiment, get_experiment, override_trained, resolve, schema
from jaxseg.config.checks import complete
from jaxseg.config.defaults import DATASETS
from jaxseg.config.fields import Each, Field
from jaxseg.config.resolve import experiment_from_json, experiment_to_json
from jaxseg.data.catalog import get_spec
from jaxseg.errors import ConfigError
from jaxseg.zoo import published
from tools import config_reference

NAME = "fcn_r18-d8_64x64_2k_folder"
SPEC = SimpleNamespace(classes=("sky", "road", "car"))
PARTS = [part for _, part in config_reference.PARTS.values()]


def make(name=NAME, spec=SPEC):
    return resolve(get_experiment(name), spec)


@pytest.mark.parametrize("part", PARTS)
def test_every_field_is_declared_with_its_range_and_meaning(part):
    for field in dataclasses.fields(part):
        node = field.metadata.get("node")
        if node is None:  # a part of its own, or the arguments of a module or a loss
            assert field.name in (*schema._PARTS, "heads", "options"), field.name
            continue
        assert field.metadata["meaning"].strip().endswith("."), field.name
        assert isinstance(node, Field | Each) and (isinstance(node, Each) or node.words)


@pytest.mark.parametrize("part", PARTS)
def test_defaults_are_in_their_own_range(part):
    for field in dataclasses.fields(part):
        node = field.metadata.get("node")
        if isinstance(node, Field) and field.default not in ("", (), (0, 0), None, *node.others):
            value = field.default
            assert node.holds(*(value if isinstance(value, tuple) else (value,))), field.name


def test_the_reference_is_what_the_declaration_says():
    text = config_reference.FILE.read_text(encoding="utf-8")
    assert config_reference.reference() in text, "run python tools/config_reference.py"


def test_numbers_of_classes_are_those_of_the_catalogue():
    for name, table in DATASETS.items():
        if name != "folder":
            assert table["num_classes"] == get_spec(name).num_classes, name


def test_published_experiments_survive_config_json():
    for row in published()[::7]:
        config = get_experiment(row["name"])
        count = config.model.num_classes
        experiment = resolve(config, SimpleNamespace(classes=tuple(map(str, range(count)))))
        stored = json.loads(json.dumps(experiment_to_json(experiment)))
        assert stored["schema"] == schema.SCHEMA_VERSION
        assert experiment_from_json(stored) == experiment, row["name"]


def test_an_experiment_is_pure_and_frozen():
    config = get_experiment(NAME)
    before = config.to_json_best_effort()
    experiment = resolve(config, SPEC)
    assert config.to_json_best_effort() == before and not config.is_locked
    assert resolve(config, SPEC) == experiment and resolve(experiment, SPEC) == experiment
    assert experiment.model.num_classes == 3 and experiment.dataset.classes == SPEC.classes
    assert pickle.loads(pickle.dumps(experiment)) == experiment
    hash(experiment)
    with pytest.raises(dataclasses.FrozenInstanceError):
        experiment.steps = 3
    with pytest.raises((TypeError, ValueError)):
        experiment.model.heads["decode"] = None


def test_options_are_fields_in_a_dict():
    head = make().model.heads["decode"]
    assert head.to_dict() == {"name": "fcn", "channels": 128, "dilation": 1}
    assert head.get("channels") == 128 and head.get("nothing", 5) == 5
    loss = make().losses["aux_0"]
    assert loss.weight == 0.4 and loss.to_dict()["sampler"] == {
        "name": "",
        "min_kept": 100000,
        "threshold": 0.0,
    }


def test_a_config_of_the_first_edition_is_read():
    stored = experiment_to_json(make())
    del stored["schema"]
    stored["losses"]["aux_0"]["name"] = "class_presence"
    del stored["optimizer"]["b1"], stored["dataset"]["nodata"]
    found = experiment_from_json(json.loads(json.dumps(stored)))
    assert found.optimizer.b1 == 0.9 and found.dataset.nodata == ()
    assert found.losses["aux_0"].name == "se_loss" and found.dataset.dtype == "uint8"


@pytest.mark.parametrize("change", [{"ema": 0.9}, {"schema": 99}])
def test_a_config_of_a_newer_version_is_refused(change):
    with pytest.raises(ConfigError) as error:
        experiment_from_json(experiment_to_json(make()) | change)
    assert error.value.field == next(iter(change))


def test_a_trained_run_keeps_what_it_was_trained_on():
    trained = dataclasses.replace(
        make(), dataset=dataclasses.replace(make().dataset, root="a", channels=3, dtype="uint16")
    )
    other = complete(get_experiment("pspnet_r50-d8_32x32_4k_folder"))
    with other.ignore_type():
        other.dataset.update(root="", channels=5, val_split="test")
        other.eval.update(flip=True)
        other.precision = "bfloat16"
    found = override_trained(trained, other)
    assert (found.dataset.root, found.dataset.dtype, found.dataset.channels) == ("a", "uint16", 3)
    assert found.dataset.val_split == "test" and found.eval.flip and found.precision == "bfloat16"
    assert (found.model, found.losses, found.steps) == (trained.model, trained.losses, 2000)
    assert isinstance(found, Experiment) and trained.eval.flip is False
