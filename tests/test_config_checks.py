"""Every field of a config has a type and a range; what cannot be meant is refused by name; old
configs are completed.
"""

import math
import os
from pathlib import Path

import ml_collections
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxseg import files, losses, zoo
from jaxseg.config import checks, defaults, experiment, fields, get_experiment, schema
from jaxseg.errors import ConfigError
from jaxseg.experiments import load_experiment
from jaxseg.models import BACKBONES, HEADS, NECKS, arguments
from jaxseg.training import hints, loop, overfit
from jaxseg.validation import SCHEMA, check_alone

NAME = "fcn_r18-d8_64x64_2k_folder"
LOSSES = ("cross_entropy", "focal", "dice", "tversky", "lovasz")


def make(name=NAME, **changes):
    """The config of an experiment with fields, `a__b` for a.b, replaced whatever their type."""
    config = get_experiment(name)
    for path, value in changes.items():
        *parts, key = path.split("__")
        part = config
        for inner in parts:
            part = part[inner]
        with part.ignore_type(), part.unlocked():
            part[key] = ConfigDict(value) if isinstance(value, dict) else value
    return config


def _leaves(part, path=""):
    for key, value in part.items():
        where = f"{path}.{key}".lstrip(".")
        if isinstance(value, ConfigDict) and len(value):
            yield from _leaves(value, where)
        else:
            yield where


# --- The table ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", zoo.METHODS)
def test_published_configs_hold_and_every_field_of_theirs_has_a_row(method):
    seen = set()
    for row in zoo.rows_of(method):
        config = check_alone(get_experiment(row["name"]))
        for path in set(_leaves(config)) - seen:
            assert isinstance(checks.find(config, path, SCHEMA), fields.Field | fields.Each), path
            seen.add(path)


def test_every_argument_of_a_module_and_every_option_of_a_loss_has_a_row():
    parts = ((BACKBONES, arguments.BACKBONE), (NECKS, arguments.NECK), (HEADS, arguments.HEAD))
    for table, node in parts:
        for name in table:
            for argument, field in node.fields({"name": name}, "model.x").items():
                assert isinstance(field, fields.Field), (name, argument)
    for name in losses.LOSSES:
        for option, field in losses.LOSS.fields({"name": name}, "losses.x").items():
            assert field is not None, (name, option)


def _rows(node, path=""):
    if isinstance(node, fields.Field):
        yield path, node
    for key, inner in node.items() if isinstance(node, dict) else ():
        yield from _rows(inner, f"{path}.{key}".lstrip("."))


@pytest.mark.parametrize("path, field", list(_rows(schema.SCHEMA)))
def test_no_field_takes_what_is_of_another_type(path, field):
    other = {str: 3, bool: "yes", int: "3", float: "3", object: "3"}[field.kind]
    wrong = [other, {"a": 1}, [other], math.nan, [math.nan], b"x"] + (
        [] if None in field.others else [None]
    )
    wrong += [True, [True]] if field.kind in (int, float) else []
    wrong += [] if field.length is None else ["auto"[: field.length + 1]]
    wrong += [] if field.length is None and field.kind is float else [1.5]
    for value in wrong:
        found = list(checks.problems(value, field, path))
        assert [error.field for error in found] == [path], (value, found)


def test_whole_numbers_lists_and_arrays_are_as_good():
    config = make(
        optimizer__weight_decay=0,
        dataset__flip=1,
        eval__scales=[1, 2],
        dataset__crop_size=np.array([32, 64]),
        loss_scale=0,
    )
    config = check_alone(config)
    assert config.eval.scales == (1, 2) and config.dataset.crop_size == (32, 64)
    assert check_alone(make(dataset__root=Path("photos"))).dataset.root == "photos"


def test_a_home_in_a_config_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    config = check_alone(
        make(
            dataset__root="~/a",
            eval__root="~/b",
            init_from="~/c.pth",
            dataset__concat={"more": dict(name="folder", root="~/d")},
        )
    )
    found = (
        config.dataset.root,
        config.eval.root,
        config.init_from,
        config.dataset.concat.more.root,
    )
    assert found == tuple(f"/home/someone/{name}" for name in ("a", "b", "c.pth", "d"))


def test_parts_of_a_config_are_never_one_object():
    config = get_experiment(NAME)
    config.losses.decode.sampler.name = "ohem"
    assert (
        config.losses.aux_0.sampler.name == ""
        and get_experiment(NAME).losses.decode.sampler.name == ""
    )
    config.eval.scales, config.schedule.power = (0.5,), 2.0
    assert schema.EVALUATION["scales"] == (1.0,) and schema.DEFAULTS["schedule"]["power"] == 0.9


# --- What cannot be meant -------------------------------------------------------------------------

RULE = {"pattern": "^backbone/", "learning_rate": 0.1}
WRONG = [
    ("steps", 0),
    ("steps", 10**12),
    ("batch_size", -2),
    ("log_every", 0),
    ("keep_checkpoints", 0),
    ("eval_every", -1),
    ("seed", -1),
    ("seed", 2**32),
    ("seed", "abc"),
    ("loss_scale", -1.0),
    ("precision", "fp16"),
    ("init_from", None),
    ("optimizer.learning_rate", 0.0),
    ("optimizer.learning_rate", -0.1),
    ("optimizer.learning_rate", math.inf),
    ("optimizer.momentum", 2.0),
    ("optimizer.momentum", 1.0),
    ("optimizer.momentum", -0.1),
    ("optimizer.b1", 1.0),
    ("optimizer.b2", 1.5),
    ("optimizer.eps", 0.0),
    ("optimizer.weight_decay", -1e-4),
    ("optimizer.clip_norm", -1.0),
    ("optimizer.name", "sdg"),
    ("schedule.name", "polly"),
    ("schedule.power", -1.0),
    ("schedule.end_value", 0.1),
    ("schedule.end_value", -1e-4),
    ("schedule.warmup_steps", -1),
    ("schedule.warmup_factor", 1.5),
    ("schedule.boundaries", (2, 1)),
    ("schedule.boundaries", (1, 1)),
    ("schedule.boundaries", (0.5,)),
    ("schedule.boundaries", 5),
    ("schedule.decay", 0.0),
    ("schedule.decay", 2.0),
    ("model.norm.momentum", 1.0),
    ("model.norm.momentum", 0.1),
    ("model.norm.epsilon", 0.0),
    ("model.dropout_rate", 1.0),
    ("model.align_corners", "no"),
    ("model.backbone.name", "resnext"),
    ("model.backbone.strides", (1, 2)),
    ("model.backbone.stem", "v2"),
    ("model.backbone.base_channels", 0),
    ("model.heads.decode.channels", -8),
    ("model.heads.decode.kernel_size", 2),
    ("model.heads.decode.in_index", "last"),
    ("model.heads.decode.num_convs", 1.5),
    ("losses.decode.name", "diec"),
    ("losses.decode.weight", -1.0),
    ("losses.decode.weight", math.nan),
    ("losses.decode.weight", 1e39),
    ("losses.decode.average", "mean"),
    ("losses.decode.sigmoid", 1),
    ("losses.decode.sampler.name", "ohme"),
    ("losses.decode.sampler.min_kept", 0),
    ("losses.decode.sampler.threshold", 1.5),
    ("losses.decode.sampler", "ohem"),
    ("losses.decode.class_weight", "balanced"),
    ("losses.decode.class_weight", ("balanced",)),
    ("losses.decode.class_weight", (-1, 1, 1)),
    ("losses.decode.class_weight", (0, 0, 0)),
    ("losses.decode.class_weight", (math.nan, 1, 1)),
    ("losses.decode.class_weight", ("a", "b", "c")),
    ("losses.decode.class_weight", 3.0),
    ("losses.decode", "dice"),
    ("dataset.name", "foldr"),
    ("dataset.crop_size", 64),
    ("dataset.crop_size", "64x64"),
    ("dataset.crop_size", (64, 0)),
    ("dataset.ratio_range", (2.0, 0.5)),
    ("dataset.flip", 2),
    ("dataset.channels", 0),
    ("dataset.num_workers", -1),
    ("dataset.dtype", "int8"),
    ("dataset.image_mean", (0.5,)),
    ("dataset.image_std", (1.0, 1.0, 0.0)),
    ("dataset.concat", ["b"]),
    ("model.backbone.stem_channels", 1),
    ("dataset.max_pixels", -1),
    ("dataset.match_classes", "nam"),
    ("dataset.classes", "sky"),
    ("eval.scales", 1.0),
    ("eval.scales", "big"),
    ("eval.scales", ()),
    ("eval.scales", (0.0, 1.0)),
    ("eval.mode", "silde"),
    ("eval.batch_size", 0),
    ("eval.resize", (0, 5)),
]


@pytest.mark.parametrize("path, value", WRONG)
def test_what_cannot_be_meant_is_refused_by_name(path, value):
    with pytest.raises(ConfigError) as error:
        check_alone(make(**{path.replace(".", "__"): value}))
    assert error.value.field == path, error.value
    assert path in str(error.value) and (
        isinstance(value, str | tuple | list) or str(value) in str(error.value) or value is None
    )


@pytest.mark.parametrize(
    "path, value, field, decisive",
    [
        ("model__norm", {"momentum": 0.9, "eps": 1e-3}, "model.norm.eps", "'epsilon'"),
        (
            "model__heads__decode",
            {"name": "psp", "channels": 8, "pool_scale": (1, 2)},
            "model.heads.decode.pool_scale",
            "'pool_scales'",
        ),
        ("model__backbone", {"name": "resnet", "deep": 18}, "model.backbone.deep", "'depth'"),
        ("schedule", {"name": "poly", "min_lr": 0.0}, "schedule.min_lr", "'end_value'"),
        ("optimizer", {"name": "adam", "lr": 0.1}, "optimizer.lr", "'learning_rate'"),
        ("eval", {"scale": (1.0,)}, "eval.scale", "'scales'"),
        ("dataset__flp", 0.5, "dataset.flp", "'flip'"),
        ("max_iters", 5, "max_iters", "'steps'"),
        ("model__heads__decode", {"name": "fcn"}, "model.heads.decode.channels", "missing"),
        ("losses__decode", {"name": "dice", "smoth": 1.0}, "losses.decode.smoth", "'smooth'"),
        (
            "losses__decode",
            {"name": "cross_entropy", "loss_weight": 1.0},
            "losses.decode.loss_weight",
            "'weight'",
        ),
        (
            "losses__decode__sampler",
            {"name": "ohem", "thresh": 0.7},
            "losses.decode.sampler.thresh",
            "'threshold'",
        ),
        (
            "dataset__concat",
            {"b": {"name": "folder", "rot": "x"}},
            "dataset.concat.b.rot",
            "'root'",
        ),
        (
            "dataset__concat",
            {"b": {"name": "folder", "data_root": "x"}},
            "dataset.concat.b.data_root",
            "'root'",
        ),
        (
            "dataset__concat",
            {"b": {"name": "folder", "repeat": 1.5}},
            "dataset.concat.b.repeat",
            "1.5",
        ),
        (
            "dataset__concat",
            {"b": {"name": "folder", "repeat": 0}},
            "dataset.concat.b.repeat",
            "1 or more",
        ),
        ("dataset__concat", {"b": "data/more"}, "dataset.concat.b", "'root'"),
        (
            "optimizer__multipliers",
            {"a": RULE | {"patern": "x"}},
            "optimizer.multipliers.a.patern",
            "'pattern'",
        ),
        (
            "optimizer__multipliers",
            {"a": {"pattern": "x", "lr": 0.0}},
            "optimizer.multipliers.a.lr",
            "'learning_rate'",
        ),
        (
            "optimizer__multipliers",
            {"a": {"pattern": "x", "lr_mult": 0.0}},
            "optimizer.multipliers.a.lr_mult",
            "'learning_rate'",
        ),
        (
            "optimizer__multipliers",
            {"a": {"pattern": "x", "decay_mult": 0.0}},
            "optimizer.multipliers.a.decay_mult",
            "'weight_decay'",
        ),
        (
            "optimizer__multipliers",
            {"a": {"pattern": "x", "learing_rate": 0.0}},
            "optimizer.multipliers.a.learing_rate",
            "'learning_rate'",
        ),
        (
            "optimizer__multipliers",
            {"a": {"pattern": "x", "freeze_statistic": True}},
            "optimizer.multipliers.a.freeze_statistic",
            "_statistics'",
        ),
        (
            "optimizer__multipliers",
            {"a": {"pattern": "(x", "learning_rate": 0.0}},
            "optimizer.multipliers.a.pattern",
            "unterminated",
        ),
        (
            "optimizer__multipliers",
            {"a": {"pattern": "x", "learning_rate": "0.1x"}},
            "optimizer.multipliers.a.learning_rate",
            "0.1x",
        ),
        (
            "optimizer__multipliers",
            {"a": {"pattern": "x", "learning_rate": -1}},
            "optimizer.multipliers.a.learning_rate",
            "-1",
        ),
        (
            "optimizer__multipliers",
            {"a": {"learning_rate": 0.0}},
            "optimizer.multipliers.a.pattern",
            "missing",
        ),
        (
            "optimizer__multipliers",
            {"a": {"pattern": "x"}},
            "optimizer.multipliers.a",
            "freeze_statistics",
        ),
        ("optimizer__multipliers", {"a": "^backbone/"}, "optimizer.multipliers.a", "'pattern'"),
    ],
)
def test_unknown_and_missing_fields_at_any_depth_are_refused(path, value, field, decisive):
    with pytest.raises(ConfigError) as error:
        check_alone(make(**{path: value}))
    assert error.value.field == field and decisive in str(error.value)


@pytest.mark.parametrize("freeze", [True, False])
def test_multipliers_may_freeze_statistics(freeze):
    rule = {"pattern": "^backbone/", "learning_rate": 0.0, "freeze_statistics": freeze}
    assert (
        check_alone(
            make(optimizer__multipliers={"frozen": rule})
        ).optimizer.multipliers.frozen.to_dict()
        == rule
    )
    check_alone(
        make(
            optimizer__multipliers={"still": {"pattern": "^backbone/", "freeze_statistics": freeze}}
        )
    )


def test_schedules_fit_the_run(caplog):
    config = check_alone(make(schedule__name="step", schedule__boundaries=(1000, 1900)))
    assert config.schedule.boundaries == (1000, 1900)
    with pytest.raises(ConfigError) as error:
        check_alone(make(schedule__name="step", schedule__boundaries=()))
    assert error.value.field == "schedule.boundaries" and not caplog.records
    for changes in (
        dict(boundaries=(2000,)),
        dict(boundaries=(1000, 1950), warmup_steps=100),
        dict(warmup_steps=2000, boundaries=(1,)),
    ):
        caplog.clear()
        check_alone(
            make(
                schedule__name="step",
                **{f"schedule__{key}": value for key, value in changes.items()},
            )
        )
        assert caplog.records[0].levelname == "WARNING"  # of a trial with few steps
    check_alone(make(schedule__name="constant", schedule__end_value=0.5))  # which does not read it
    for name in ("poly", "cosine"):
        with pytest.raises(ConfigError) as error:
            check_alone(make(schedule__name=name, optimizer__learning_rate=5e-5))
        assert error.value.field == "schedule.end_value" and "0.0001" in str(error.value)


def test_a_missing_part_is_reported():
    config = make()
    with config.unlocked():
        del config.model.heads
        del config.batch_size
    with pytest.raises(ConfigError) as error:
        check_alone(config)
    assert error.value.field == "batch_size"
    config.batch_size = 2
    with pytest.raises(ConfigError) as error:
        check_alone(config)
    assert error.value.field == "model.heads" and "'fcn'" in str(error.value)


@pytest.mark.parametrize(
    "labels, field",
    [(["aux_low", "decode"], "aux_low"), (["head"], "head"), (["aux_0"], "decode"), ([], "decode")],
)
def test_heads_have_the_labels_that_say_what_they_are(labels, field):
    with pytest.raises(ConfigError) as error:
        check_alone(make(model__heads={label: dict(name="fcn", channels=4) for label in labels}))
    assert error.value.field == f"model.heads.{field}"


# --- Losses ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    "method", ["fcn_r18-d8_64x64_2k_folder", "deeplabv3_r50-d16-mg124_64x64_2k_folder"]
)
def test_any_loss_of_scores_can_be_chosen_by_name(name, method, caplog):
    config = make(method, losses__decode__name=name, model__num_classes=3)
    caplog.set_level("INFO", "jaxseg")
    config = check_alone(config)
    assert set(config.losses.decode) <= {"name", "target", "weight", *losses.options_of(name)}
    assert ("config.losses.decode" in caplog.text) == (
        name != "cross_entropy"
    ) and caplog.text.count("left out") <= 1
    losses.make_loss(config)


@pytest.mark.parametrize("name", ["se_loss", "point_cross_entropy"])
def test_losses_of_other_outputs_are_none_of_a_heads(name):
    with pytest.raises(ConfigError) as error:
        check_alone(make(losses__decode__name=name))
    assert error.value.field == "losses.decode.name"


def test_something_must_be_learnt():
    for changes in (dict(losses={}), dict(losses__decode__weight=0.0, losses__aux_0__weight=0)):
        with pytest.raises(ConfigError) as error:
            check_alone(make(**changes))
        assert error.value.field == "losses"


@pytest.mark.parametrize("value", ["auto", ("auto",), ["auto"]])
def test_class_weights_auto_in_any_form(value, tmp_path):
    config = experiment(
        "fcn",
        "r18-d8_64x64_2k_shapes",
        decode=dict(name="fcn"),
        losses=dict(decode=dict(class_weight=value)),
    )
    assert check_alone(config).losses.decode.class_weight == defaults.AUTO
    config = make("fcn_r18-d8_64x64_2k_shapes", losses__decode__class_weight=value)
    weights = load_experiment(config).losses["decode"].get("class_weight")
    assert len(weights) == config.model.num_classes and min(weights) > 0


def test_class_weights_and_alphas_are_one_a_class():
    for options, field in (
        (dict(class_weight=(1.0, 2.0)), "class_weight"),
        (dict(alpha=(0.1, 0.2)), "alpha"),
    ):
        config = make(
            "fcn_r18-d8_64x64_2k_shapes", losses__decode=dict(name="focal", weight=1.0) | options
        )
        with pytest.raises(ConfigError) as error:
            load_experiment(config)
        assert error.value.field == f"losses.decode.{field}" and "2 values" in str(error.value)
    check_alone(make(losses__decode=dict(name="focal", alpha=0.25)))


# --- Advice ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.9, 0.99, 0.95, 0.6])
@pytest.mark.parametrize("steps", [1, 3, 40, 100, 5000])
def test_advice_never_proposes_what_is_set_or_does_not_help(momentum, steps):
    warning = hints.batch_norm_warmup_warning(make(model__norm__momentum=momentum, steps=steps))
    assert bool(warning) == (momentum**steps >= 1e-3)
    if warning:
        needed = int(warning.partition("train for ")[2].split()[0])
        assert needed > steps and momentum**needed < 1e-3
        assert ("set config.model.norm.momentum=0.9" in warning) == (
            momentum > 0.9 and 0.9**steps < 1e-3
        )


def test_number_of_classes_advice_is_another_variant():
    with pytest.raises(ConfigError) as error:
        load_experiment(make("fcn_r18-d8_64x64_2k_shapes", model__num_classes=99))
    assert error.value.field == "model.num_classes" and "variant" not in error.value.hint


def test_overfitting_checks_the_config_first(tmp_path):
    for path, value in (
        ("steps", 0),
        ("batch_size", -1),
        ("dataset.train_split", 5),
        ("optimizer.learning_rate", "fast"),
    ):
        with pytest.raises(ConfigError) as error:
            overfit.overfit(make(**{path.replace(".", "__"): value}), tmp_path, 2)
        assert error.value.field == path
    assert not os.listdir(tmp_path)


def test_what_is_no_configdict_is_refused_or_completed():
    config = ml_collections.ConfigDict(
        dict(name="mine", steps=5, batch_size=1, model=dict(backbone=dict(name="resnet", depth=10)))
    )
    config.model.heads = dict(decode=dict(name="fcn", channels=4))
    config.losses = dict(decode=dict(name="dice"))
    config.dataset = dict(name="shapes", crop_size=(32, 32))
    config = check_alone(config)
    assert (
        config.losses.decode.weight == 1.0
        and config.optimizer.name == "sgd"
        and config.eval.mode == "whole"
    )


# --- Outputs --------------------------------------------------------------------------------------


def test_outputs_are_checked_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    files.check_output(tmp_path / "new" / "folder", "--output")
    files.check_output(tmp_path / "new.json", "--json", is_file=True)
    files.check_output(tmp_path / "file", "--json", is_file=True)
    assert sorted(os.listdir(tmp_path)) == ["file"]
    wrong = (("file", False), ("file/below", False), ("", True), ("file/below.json", True))
    for name, is_file in wrong:
        with pytest.raises(ConfigError) as error:
            files.check_output(tmp_path / name, "--output", is_file=is_file)
        assert error.value.file == str(tmp_path / name) and error.value.field == "--output"
    with pytest.raises(ConfigError) as error:
        loop.train(make("fcn_r18-d8_64x64_2k_shapes"), tmp_path / "file")
    assert error.value.field == "workdir"


@pytest.mark.parametrize(
    "given, kept",
    [
        (-9999, (-9999.0,)),
        ("nan", ("nan",)),
        (math.nan, ("nan",)),
        ((0, "nan"), (0.0, "nan")),
        ("none", ("none",)),
        ((), ()),
    ],
)
def test_nodata_has_one_form_that_json_holds(given, kept):
    assert check_alone(make(dataset__nodata=given)).dataset.nodata == kept


@pytest.mark.parametrize("given", ["water", (1, "none"), math.inf, True])
def test_nodata_that_cannot_be_meant(given):
    with pytest.raises(ConfigError) as error:
        check_alone(make(dataset__nodata=given))
    assert error.value.field == "dataset.nodata"
