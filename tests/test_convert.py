"""Conversion both ways: exact round trips, complete errors, backbones' own weights, workdirs."""

import collections
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxseg import checkpoint, convert, zoo
from jaxseg.config.finder import configs_folder, get_experiment
from jaxseg.errors import CheckpointError, WeightsError
from jaxseg.models import create_model, init_variables

DATA = Path(__file__).parent / "data" / "state_dict"
# The config files with published experiments.
METHODS = sorted(
    file.stem
    for file in configs_folder().glob("*.py")
    if any(row["name"].startswith(f"{file.stem}_") for row in zoo.published())
)
NARROW = dict(backbone=dict(base_channels=4, stem_channels=8), channels=8, num_classes=3)


def narrow(name: str = "pspnet_r18-d8", **changes):
    """(model, variables) small enough for a test, statistics and all drawn at random."""
    model = create_model(name, **{**NARROW, **changes})
    variables = init_variables(model, 0)
    rng = np.random.default_rng(1)
    return model, jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), variables
    )


def same(a, b) -> bool:
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b))
    )


@pytest.mark.parametrize("name", ["pspnet_r18-d8", "fcn_r18b-d8", "deeplabv3_r50-d8"])
def test_round_trip_is_exact(name):
    model, variables = narrow(name)
    state_dict = convert.to_mmseg(variables)
    assert same(convert.from_mmseg(state_dict, model), variables)
    kernel = variables["params"]["backbone"]["layer1.0"]["conv1"]["kernel"]
    np.testing.assert_array_equal(
        state_dict["backbone.layer1.0.conv1.weight"], kernel.transpose(3, 2, 0, 1)
    )
    assert (
        state_dict["decode_head.conv_seg.weight"].shape[:2] == (3, 8) if "fcn" not in name else True
    )
    assert state_dict["backbone.layer1.0.bn1.num_batches_tracked"].dtype == np.int64
    assert all(value.flags.c_contiguous for value in state_dict.values())


@pytest.mark.parametrize("method", METHODS)
def test_names_are_unique(method):
    """The smallest published model of every config file has as many PyTorch names as variables."""
    rows = [row for row in zoo.published() if row["name"].startswith(f"{method}_")]
    experiment = get_experiment(min(rows, key=lambda row: int(row["parameters"]))["name"])
    model = create_model(experiment.model, num_classes=19)
    keys = {"params": jax.random.key(0), "points": jax.random.key(0)}
    shapes = jax.eval_shape(lambda: model.init(keys, np.zeros((1, 512, 512, 3), np.float32)))
    names = collections.Counter(
        convert.torch_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(shapes)
    )
    assert max(names.values()) == 1
    assert all(
        name.startswith(("backbone.", "neck.", "decode_head.", "auxiliary_head.")) for name in names
    )


def test_wrappers_prefix_is_taken_off():
    model, variables = narrow()
    state_dict = {f"module.{name}": value for name, value in convert.to_mmseg(variables).items()}
    assert same(convert.from_mmseg(state_dict, model), variables)


def test_errors_list_both_sides():
    model, variables = narrow()
    state_dict = convert.to_mmseg(variables)
    del state_dict["decode_head.bottleneck.conv.weight"]
    state_dict["decode_head.another.weight"] = np.zeros((1, 2), np.float32)
    state_dict["decode_head.conv_seg.bias"] = np.zeros(7, np.float32)
    with pytest.raises(WeightsError) as error:
        convert.from_mmseg(state_dict, model)
    for text in (
        "(1):\n    decode_head.conv_seg.bias: the file has (7,), the model (3,)\n",
        "in the model, not in the file (1):\n"
        "    decode_head.bottleneck.conv.weight (8, 64, 3, 3)\n",
        "in the file, not in the model (1):\n    decode_head.another.weight (1, 2)",
    ):
        assert text in error.value.problem


def test_long_lists_in_errors_are_cut():
    model, variables = narrow()
    with pytest.raises(WeightsError) as error:
        convert.from_mmseg({"x": np.zeros(3)}, model)
    lines = error.value.problem.splitlines()
    count = len(jax.tree.leaves(variables))
    assert lines[1] == f"  in the model, not in the file ({count}):"
    assert lines[22:] == [
        f"    ... and {count - 20} more",
        "  in the file, not in the model (1):",
        "    x (3,)",
    ]


def backbone_weights(variables) -> dict[str, np.ndarray]:
    """As ImageNet weights come: no prefix, and a classifier."""
    named = {
        n.removeprefix("backbone."): v
        for n, v in convert.to_mmseg(variables).items()
        if n.startswith("backbone.")
    }
    return named | {
        "fc.weight": np.zeros((10, 32), np.float32),
        "fc.bias": np.zeros(10, np.float32),
    }


def old_stem(name: str) -> str:
    return name.replace("stem.7.", "bn1.").replace("stem.", "conv1.")


@pytest.mark.parametrize(
    "spell",
    [
        lambda n: n,
        lambda n: f"backbone.{n}" if n[:3] != "fc." else f"head.{n}",
        lambda n: f"module.{n}",
        old_stem,
    ],
)
def test_backbones_own_weights(spell):
    _, source = narrow()
    _, target = narrow(num_classes=5)
    target = jax.tree.map(np.zeros_like, target)
    filled, report = convert.load_backbone(
        {spell(name): value for name, value in backbone_weights(source).items()}, target
    )
    for collection in ("params", "batch_stats"):
        assert same(filled[collection]["backbone"], source[collection]["backbone"])
        assert same(filled[collection]["decode_head"], target[collection]["decode_head"])
    assert len(report.unused) == 2 and all("fc." in name for name in report.unused)
    assert (
        len(report.loaded) == len(jax.tree.leaves([source[c]["backbone"] for c in source]))
        and not report.missing
    )


def test_whole_models_give_their_backbone():
    _, source = narrow("fcn_r18-d8")
    _, target = narrow()
    filled, report = convert.load_backbone(convert.to_mmseg(source), target)
    assert same(filled["params"]["backbone"], source["params"]["backbone"])
    assert "decode_head.conv_seg.weight" in report.unused


def test_other_backbones_are_refused():
    """Also a deeper one, which has every tensor of a shallower one and more."""
    (_, r18), (_, r18b) = narrow(), narrow("fcn_r18b-d8")
    _, r34 = narrow("pspnet_r18-d8", backbone=NARROW["backbone"] | dict(depth=34))
    absent, unknown = "in the model, not in the file", "in the file, not in the model"
    for source, target, lists in (
        (r34, r18, {unknown: "backbone.layer1.2."}),
        (r18, r34, {absent: "backbone.layer1.2."}),
        (r18b, r18, {absent: "backbone.stem.0.weight", unknown: "backbone.conv1.weight"}),
    ):
        with pytest.raises(WeightsError) as error:
            convert.load_backbone(backbone_weights(source), target)
        for title, name in lists.items():
            assert name in error.value.problem.partition(f"{title} (")[2].partition(" (\n")[0]
        assert all(
            (title in error.value.problem) == (title in lists) for title in (absent, unknown)
        )


def test_to_a_workdir_and_back(tmp_path):
    """A file becomes a workdir that all other steps read, and comes back as it was."""
    experiment = get_experiment("pspnet_r18-d8_512x1024_80k_cityscapes")
    experiment.model.backbone.update(NARROW["backbone"])
    experiment.model.heads.decode.channels = experiment.model.heads.aux_0.channels = 8
    variables = init_variables(create_model(experiment.model), 0)
    convert.write_state_dict(tmp_path / "x.npz", convert.to_mmseg(variables))
    report = convert.convert_checkpoint(experiment, tmp_path / "x.npz", tmp_path / "run")
    assert len(report.loaded) == len(jax.tree.leaves(variables))
    found, loaded = checkpoint.load_variables(tmp_path / "run")
    assert found.name == experiment.name and same(loaded, variables)
    for path in (tmp_path / "run", tmp_path / "run" / "checkpoints" / "0"):
        convert.export_checkpoint(path, tmp_path / "back.safetensors")
        back, first = (convert.read_state_dict(tmp_path / n) for n in ("back.safetensors", "x.npz"))
        assert sorted(back) == sorted(first) and all(
            np.array_equal(back[n], first[n]) for n in first
        )
    with pytest.raises(CheckpointError) as error:
        convert.convert_checkpoint(experiment, tmp_path / "x.npz", tmp_path / "run")
    assert error.value.file == str(tmp_path / "run")
    convert.write_state_dict(tmp_path / "y.npz", {"a.weight": np.zeros(3)})
    with pytest.raises(WeightsError) as error:
        convert.convert_checkpoint(experiment, tmp_path / "y.npz", tmp_path / "other")
    assert error.value.file == str(tmp_path / "y.npz") and not (tmp_path / "other").exists()
    assert experiment.name in error.value.problem and "a.weight" in error.value.problem


@pytest.mark.parametrize(
    "prefix, name",
    [("module.", "pspnet_r18-d8"), ("model.", "fcn_r18b-d8"), ("net.module.", "pspnet_r18-d8")],
)
def test_a_wrappers_prefix_is_found_by_what_then_fits(prefix, name):
    model, variables = narrow(name)
    plain = convert.to_mmseg(variables)
    state_dict = {f"{prefix}{name}": value for name, value in plain.items()}
    assert same(convert.from_mmseg(state_dict, model), variables)
    backbone = {f"{prefix}{name}": value for name, value in backbone_weights(variables).items()}
    filled, _ = convert.load_backbone(backbone, jax.tree.map(np.zeros_like, variables))
    assert same(filled["params"]["backbone"], variables["params"]["backbone"])
    two = state_dict | {f"teacher.{name}": value for name, value in plain.items()}
    if prefix != "module.":  # data parallel's is always taken off
        with pytest.raises(WeightsError) as error:
            convert.from_mmseg(two, model)
        assert "'teacher.'" in error.value.problem


def test_class_names_of_genuine_files():
    assert (
        convert.read_classes(DATA / "expected.npz")
        == ()
        == convert.read_classes(DATA / "wrapped.pth")
    )
    assert (
        convert.read_classes(DATA / "mmseg.pth")
        == ("a", "b")
        == convert.read_classes(DATA / "legacy.pth")
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_numbers_are_refused_by_name(value):
    model, variables = narrow()
    state_dict = convert.to_mmseg(variables)
    state_dict["backbone.layer1.0.bn1.running_var"][0] = value
    for load in (
        lambda: convert.from_mmseg(state_dict, model),
        lambda: convert.load_backbone(state_dict, variables),
    ):
        with pytest.raises(WeightsError) as error:
            load()
        assert "backbone.layer1.0.bn1.running_var" in error.value.problem


def test_another_number_of_classes_is_called_that():
    model, _ = narrow()
    _, other = narrow(num_classes=7)
    with pytest.raises(WeightsError) as error:
        convert.from_mmseg(convert.to_mmseg(other), model)
    assert "7 classes" in error.value.hint and "init_from" in error.value.hint
