"""Starting from other weights: workdirs, files, classifier rows by class name, channels."""

import dataclasses

import jax
import numpy as np
import pytest
from helpers.checkpoints import DATASET, EXPERIMENT, fill, make_state

from jaxseg import checkpoint, convert
from jaxseg.config.finder import get_experiment
from jaxseg.config.schema import Experiment, ModelConfig, from_dict
from jaxseg.errors import WeightsError
from jaxseg.models import create_model, init_variables
from jaxseg.replication import to_host
from jaxseg.training import initial
from jaxseg.training.initial import load_initial
from jaxseg.weights import class_rows
from jaxseg.weights.channels import adapt_channels
from jaxseg.weights.class_rows import Classes

NARROW = dict(backbone=dict(base_channels=4, stem_channels=8), channels=8)


def same(a, b) -> bool:
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b))
    )


def fresh_of_the_toy() -> dict:
    """Zeros with the backbone of helpers.checkpoints, a wider head and a new module."""
    return {
        "params": {
            "backbone": {"kernel": np.zeros((2, 3))},
            "head": {"kernel": np.zeros((3, 5))},
            "new": {"bias": np.zeros(1)},
        },
        "batch_stats": {"backbone": {"mean": np.zeros(3)}},
    }


def test_a_workdir_gives_what_fits(tmp_path):
    fill(tmp_path, {3: 0.1})
    merged, report = load_initial(fresh_of_the_toy(), str(tmp_path))
    assert merged["params"]["backbone"]["kernel"][0, 0] == 3
    assert merged["params"]["head"]["kernel"].shape == (3, 5)
    assert report.mismatched == {"params/head/kernel": ((3, 2), (3, 5))}
    assert report.missing == {"params/new/bias": (1,)} and not report.unused
    table = report.format(str(tmp_path))
    assert "re-initialised (other shape)     1  head/kernel" in table


def test_a_workdir_of_another_backbone_is_refused(tmp_path):
    fill(tmp_path, {3: 0.1})
    fresh = fresh_of_the_toy()
    fresh["params"]["backbone"]["kernel"] = np.zeros((7, 3))
    for source, word in ((tmp_path, "params/backbone/kernel"), (tmp_path / "no.pth", "not exist")):
        with pytest.raises(WeightsError) as error:
            load_initial(fresh, str(source))
        assert error.value.file == str(source) and error.value.field == "init_from"
        assert word in error.value.problem


def test_a_weight_file_of_a_bare_backbone(tmp_path):
    """ImageNet weights of PyTorch: names without 'backbone.', and a classifier of their own."""
    weights = {
        "conv1.weight": np.ones((8, 3, 1, 1), np.float32),
        "bn1.running_mean": np.ones(8, np.float32),
        "fc.weight": np.ones((10, 8), np.float32),
    }
    np.savez(tmp_path / "r.npz", **weights)
    fresh = {
        "params": {
            "backbone": {"conv1": {"kernel": np.zeros((1, 1, 3, 8))}},
            "decode_head": {"conv_seg": {"bias": np.zeros(2)}},
        },
        "batch_stats": {"backbone": {"bn1": {"mean": np.zeros(8)}}},
    }
    merged, report = load_initial(fresh, str(tmp_path / "r.npz"))
    assert np.all(merged["params"]["backbone"]["conv1"]["kernel"] == 1)
    assert np.all(merged["batch_stats"]["backbone"]["bn1"]["mean"] == 1)
    assert list(report.missing) == ["decode_head.conv_seg.bias"]
    assert list(report.unused) == ["backbone.fc.weight"]
    fresh["params"]["backbone"]["conv2"] = {"kernel": np.zeros((1, 1, 8, 8))}
    with pytest.raises(WeightsError) as error:
        load_initial(fresh, str(tmp_path / "r.npz"))
    assert error.value.file == str(tmp_path / "r.npz") and error.value.field == "init_from"
    assert "backbone.conv2.weight" in error.value.problem


def test_weights_that_are_not_finite_are_refused_by_name(tmp_path):
    variables = to_host(make_state(6).variables)
    variables["batch_stats"]["backbone"]["mean"] = np.array([1, np.inf, np.nan], np.float32)
    checkpoint.save_variables(tmp_path / "run", EXPERIMENT, variables, DATASET)
    np.savez(tmp_path / "r.npz", **{"conv1.weight": np.full((8, 3, 1, 1), np.nan, np.float32)})
    backbone = {"params": {"backbone": {"conv1": {"kernel": np.zeros((1, 1, 3, 8))}}}}
    for source, fresh, name in (
        ("run", variables, "batch_stats/backbone/mean"),
        ("r.npz", backbone, "backbone.conv1.weight"),
    ):
        with pytest.raises(WeightsError) as error:
            load_initial(fresh, str(tmp_path / source))
        assert error.value.file == str(tmp_path / source) and name in error.value.problem


# --- Classes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ours, rows, words",
    [
        (("b", "a"), [1, 0], "2 of 2"),
        (("c", "b", "a"), [None, 1, 0], "2 of 3 rows, new: c"),
        (("b",), [1], "1 of 1"),
        (("x", "y"), [None, None], "0 of 2"),
    ],
)
def test_classifier_rows_are_taken_by_class_name(tmp_path, ours, rows, words):
    variables = to_host(make_state(6).variables)
    variables["params"]["head"] = {
        "kernel": np.arange(6, dtype=np.float32).reshape(3, 2),
        "points": np.arange(8, dtype=np.float32).reshape(4, 2),
    }
    checkpoint.save_variables(tmp_path, EXPERIMENT, variables, DATASET)
    count = len(ours)
    fresh = to_host(make_state(0).variables)
    fresh["params"]["head"] = {
        "kernel": np.full((3, count), -1.0),
        "points": np.full((2 + count, count), -1.0),  # reads 2 features, then scores
    }
    axes = {"params/head/kernel": (1,), "params/head/points": (0, 1)}
    merged, report = load_initial(fresh, str(tmp_path), Classes(ours, lambda: axes))
    found, source = merged["params"]["head"], variables["params"]["head"]
    inputs = [0, 1, *(None if row is None else 2 + row for row in rows)]
    for column, row in enumerate(rows):
        kernel = [-1] * 3 if row is None else source["kernel"][:, row]
        np.testing.assert_array_equal(found["kernel"][:, column], kernel)
        points = [-1 if None in (i, row) else source["points"][i, row] for i in inputs]
        np.testing.assert_array_equal(found["points"][:, column], points)
    assert words in report.classes and words in report.format("x")
    assert merged["params"]["backbone"]["kernel"][0, 0] == 6


def test_rows_of_the_same_classes_are_taken_as_they_are(tmp_path):
    fill(tmp_path, {6: None})
    fresh = to_host(make_state(0).variables)
    merged, report = load_initial(fresh, str(tmp_path), Classes(("a", "b"), dict))
    assert not report.classes and same(merged, to_host(make_state(6).variables))


def test_a_file_with_class_names_gives_rows_by_name(tmp_path, monkeypatch):
    source = init_variables(create_model("pspnet_r18-d8", num_classes=2, **NARROW), 0)
    config = get_experiment("pspnet_r18-d8_64x64_1k_shapes").model
    config.backbone.update(NARROW["backbone"])
    config.heads.decode.channels, config.num_classes = 8, 3
    model = from_dict(ModelConfig, config)
    fresh = init_variables(create_model(model), 1)
    np.savez(tmp_path / "x.npz", **convert.to_mmseg(source))
    monkeypatch.setattr(initial, "read_classes", lambda path: ("a", "b"))
    classes = Classes(("b", "c", "a"), lambda: class_rows.find_axes(model, (1, 64, 64, 3)))
    merged, report = load_initial(fresh, str(tmp_path / "x.npz"), classes)
    assert "2 of 3 rows, new: c" in report.classes and not report.mismatched
    for head in ("decode_head", "auxiliary_head"):
        ours, theirs, new = (
            tree["params"][head]["conv_seg"]["kernel"] for tree in (merged, source, fresh)
        )
        expected = np.stack([theirs[..., 1], new[..., 1], theirs[..., 0]], axis=-1)
        np.testing.assert_array_equal(ours, expected)
    assert same(merged["params"]["backbone"], source["params"]["backbone"])


@pytest.mark.parametrize(
    "name, expected",
    [
        (
            "pointrend_r18",
            {
                "decode_head.1/fc_seg/kernel": (1, 2),
                "decode_head.1/fcs.0.conv/kernel": (1,),
                "decode_head.0/conv_seg/bias": (0,),
            },
        ),
        (
            "encnet_r18-d8",
            {"decode_head/se_layer/kernel": (1,), "decode_head/conv_seg/kernel": (3,)},
        ),
        (
            "danet_r18-d8",
            {
                "decode_head/pam_conv_seg/bias": (0,),
                "decode_head/cam_conv_seg/kernel": (3,),
                "decode_head/conv_seg/kernel": (3,),
            },
        ),
    ],
)
def test_axes_of_classes_are_found_by_shape(name, expected):
    model = from_dict(ModelConfig, get_experiment(f"{name}_512x1024_80k_cityscapes").model)
    axes = class_rows.find_axes(model, (1, 64, 64, 3))
    found = {path.removeprefix("params/"): where for path, where in axes.items()}
    assert expected.items() <= found.items()
    assert all("head" in path for path in axes)


# --- Channels -------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 6])
def test_other_channels_keep_the_response_to_grey(channels):
    rgb = np.random.default_rng(0).random((3, 3, 3, 4), np.float32)
    other = np.zeros((3, 3, channels, 4), np.float32)
    adapted = adapt_channels({"a": rgb, "b": rgb}, {"a": other, "b": rgb})
    np.testing.assert_allclose(adapted["a"].sum(2), rgb.sum(2), rtol=1e-5)
    assert adapted["b"] is rgb
    with pytest.raises(WeightsError) as error:
        adapt_channels({"a": rgb, "b": rgb}, {"a": other, "b": other})
    assert error.value.field == "dataset.channels"


def test_published_weights_start_a_model_of_other_channels(tmp_path):
    config = get_experiment("fcn_r18-d8_64x64_2k_folder")
    config.model.backbone.update(NARROW["backbone"])
    config.model.heads.decode.channels = config.model.heads.aux_0.channels = 8
    config.model.num_classes = 3
    config.dataset.update(dict(channels=5, crop_size=(32, 32)))
    experiment = from_dict(Experiment, config)
    model = create_model(experiment.model)
    rgb = init_variables(model, 7, (1, 32, 32, 3))
    np.savez(tmp_path / "rgb.npz", **convert.to_mmseg(rgb))
    variables, text = initial.initial_variables(experiment, model, str(tmp_path / "rgb.npz"))
    stem, published = (tree["params"]["backbone"]["stem.0"]["kernel"] for tree in (variables, rgb))
    assert stem.shape[2] == 5 and "first convolution was adapted from RGB to 5 channels" in text
    share = np.float32([2, 2, 1, 2, 2])[:, None]
    np.testing.assert_allclose(stem, published[:, :, [0, 1, 2, 0, 1]] / share, rtol=1e-6)
    np.savez(tmp_path / "five.npz", **convert.to_mmseg(variables))
    again, text = initial.initial_variables(experiment, model, str(tmp_path / "five.npz"))
    np.testing.assert_array_equal(again["params"]["backbone"]["stem.0"]["kernel"], stem)
    assert "channels" not in text


def test_without_a_source_variables_are_drawn_from_the_seed():
    config = get_experiment("fcn_r18-d8_64x64_2k_folder")
    config.model.backbone.update(NARROW["backbone"])
    config.model.num_classes = 3
    experiment = from_dict(Experiment, config)
    model = create_model(experiment.model)
    variables, text = initial.initial_variables(experiment, model)
    assert same(variables, init_variables(model, experiment.seed)) and text == ""
    other = dataclasses.replace(experiment, seed=experiment.seed + 1)
    assert not same(variables, initial.initial_variables(other, model)[0])
